//! What must be true of a tree at any time, for tests to ask.

use hashbrown::HashMap;
use std::hash::BuildHasherDefault;

use super::Tree;
use super::names::Folded;
use super::node::{NONE, Node, NodeId};

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}

impl Tree {
    /// Walks everything and names the first rule that is broken.
    ///
    /// # Errors
    /// The broken rule, in words. There is none, whatever was called before: an error is a bug in the tree.
    ///
    /// # Cost
    /// O(everything).
    #[doc(hidden)]
    pub fn audit(&self) -> Result<(), String> {
        let (mut live, mut heap, mut listed) = (0, 0, 0);
        let (mut pairs, mut lower_pairs) = (0, 0);
        let mut children: HashMap<NodeId, u32, BuildHasherDefault<Folded>> = HashMap::default();
        for id in 0..self.arena.slots() {
            let Some(node) = self.arena.node(id) else { continue };
            self.audit_node(id, node)?;
            live += 1;
            heap += node.heap();
            pairs += node.pairs();
            lower_pairs += node.lowers.pairs();
            listed += usize::from(node.has_routed());
            *children.entry(self.arena.above(id)).or_default() += 1;
        }
        children.remove(&NONE);
        for (id, count) in &children {
            let said = self.arena[*id].children;
            ensure!(said == *count, "node {id} has {count} children and says {said}");
        }
        let parents = (0..self.arena.slots())
            .filter_map(|id| self.arena.node(id))
            .filter(|node| node.children > 0)
            .count();
        ensure!(
            parents == children.len(),
            "{parents} nodes say that they have children, {} have",
            children.len()
        );
        ensure!(live == self.arena.live(), "{live} nodes live, {} counted", self.arena.live());
        ensure!(pairs == self.arena.pairs(), "{pairs} pairs held, {} counted", self.arena.pairs());
        ensure!(
            heap <= self.arena.bytes(),
            "{heap} bytes behind the nodes, {} counted",
            self.arena.bytes()
        );
        let counted = self.arena.lower_pairs();
        ensure!(lower_pairs == counted, "{lower_pairs} pairs held below, {counted} counted");
        self.audit_order(listed)?;
        self.audit_limits()?;
        self.audit_names()
    }

    fn audit_node(&self, id: NodeId, node: &Node) -> Result<(), String> {
        let reach = node.reach();
        ensure!(
            node.children > 0 || reach == node.len(),
            "leaf {id} of {} blocks is claimed up to {reach}",
            node.len()
        );
        ensure!(
            node.holders.is_sorted_by(|one, next| one.rank < next.rank),
            "holders of {id} are not sorted"
        );
        for holder in &node.holders {
            ensure!(
                (1..=node.len()).contains(&holder.span()),
                "node {id}: {holder:?} of {} blocks",
                node.len()
            );
            ensure!(
                holder.routed == 0 || holder.until <= node.until,
                "node {id}: {holder:?} outlasts {}",
                node.until
            );
        }
        let lowers = node.lowers.all();
        ensure!(
            lowers.is_sorted_by(|one, next| one.rank < next.rank),
            "holders of {id} below the GPU are not sorted"
        );
        for lower in lowers {
            let span = lower.span();
            ensure!((1..=node.len()).contains(&span), "node {id}: {lower:?} of {}", node.len());
        }
        let above = self.arena.above(id);
        let mut stock = Node::new(node.edge.clone(), node.start);
        stock.holders.extend_from_slice(&node.holders);
        stock.take_stock();
        ensure!(
            (node.marks, node.whole_until) == (stock.marks, stock.whole_until),
            "node {id} was changed without taking stock"
        );
        let end =
            if above == NONE { 0 } else { self.arena.node(above).map_or(u32::MAX, Node::end) };
        ensure!(
            end == node.start,
            "node {id} starts at {}, the one above ends at {end}",
            node.start
        );
        ensure!(self.arena.child(node.parent, node.edge[0]) == Some(id), "node {id} is not found");
        let tail = self.arena.node(node.tail);
        let follows =
            tail.is_some_and(|tail| tail.start == node.end() && self.arena.above(node.tail) == id);
        ensure!(
            node.tail == NONE || follows,
            "node {id} has a tail that does not follow: {}",
            node.tail
        );
        ensure!(
            node.has_routed() == self.order.lists(&self.arena, id),
            "node {id} is wrongly listed, or not"
        );
        Ok(())
    }

    fn audit_order(&self, listed: usize) -> Result<(), String> {
        let mut seen: HashMap<NodeId, (), BuildHasherDefault<Folded>> = HashMap::default();
        let mut at = self.order.oldest();
        while let Some(id) = at {
            ensure!(
                !seen.contains_key(&self.arena.above(id)),
                "node {id} is newer than the one above"
            );
            ensure!(seen.insert(id, ()).is_none(), "node {id} is in the order of use twice");
            at = Some(self.arena[id].newer).filter(|newer| *newer != NONE);
        }
        ensure!(
            seen.len() == listed,
            "{} nodes in the order of use, {listed} expected",
            seen.len()
        );
        Ok(())
    }

    fn audit_limits(&self) -> Result<(), String> {
        let mut bytes = 0;
        for (rank, claims) in self.limits.iter() {
            bytes += claims.bytes();
            let routed = |id: NodeId| {
                let holder = self.arena.node(id).and_then(|node| node.holder(rank));
                holder.map_or(0, |holder| holder.routed)
            };
            let mut seen: HashMap<NodeId, (), BuildHasherDefault<Folded>> = HashMap::default();
            for id in claims.iter() {
                ensure!(routed(id) > 0, "rank {rank} lists node {id} and claims none of it");
                ensure!(
                    !seen.contains_key(&self.arena.above(id)),
                    "rank {rank} used node {id} after the one above"
                );
                ensure!(seen.insert(id, ()).is_none(), "rank {rank} lists node {id} twice");
            }
            let nodes = (0..self.arena.slots()).map(routed).filter(|routed| *routed > 0);
            let (count, blocks) =
                nodes.fold((0, 0), |(count, sum), routed| (count + 1, sum + u64::from(routed)));
            ensure!(count == seen.len(), "rank {rank} claims {count} nodes, lists {}", seen.len());
            ensure!(
                blocks == claims.blocks,
                "rank {rank} claims {blocks} blocks, {} counted",
                claims.blocks
            );
            ensure!(
                blocks <= claims.limit,
                "rank {rank} claims {blocks} blocks, its limit is {}",
                claims.limit
            );
        }
        let tables = self.limits.bytes();
        ensure!(bytes <= tables, "{bytes} bytes of lists, {tables} counted");
        Ok(())
    }

    fn audit_names(&self) -> Result<(), String> {
        let bytes: u64 = self.names.values().map(super::names::Names::bytes).sum();
        ensure!(bytes == self.names_bytes, "{bytes} bytes of names, {} counted", self.names_bytes);
        let nodes = || (0..self.arena.slots()).filter_map(|id| self.arena.node(id));
        for (pool, names) in &self.names {
            for (name, place) in names.iter() {
                let Some(block) = self.find(*pool, name) else {
                    return Err(format!("{pool:?} calls a block {name} that is gone: {place:?}"));
                };
                let exact = self.arena[block.node].exact(*pool);
                ensure!(
                    block.from < exact,
                    "{pool:?} names block {} of node {}, holds {exact}",
                    block.from,
                    block.node
                );
            }
            let exact: u64 = nodes().map(|node| u64::from(node.exact(*pool))).sum();
            let names = names.len() as u64;
            ensure!(exact == names, "{pool:?} holds {exact} blocks under {names} names");
        }
        let holders = nodes().flat_map(|node| &node.holders);
        let exact: u64 = holders.map(|holder| u64::from(holder.exact)).sum();
        let exact = exact + self.arena.lower_pairs();
        let names: u64 = self.names.values().map(|names| names.len() as u64).sum();
        ensure!(exact == names, "{exact} exact pairs, {names} names in all");
        Ok(())
    }
}
