//! Whether a template takes a message's content as text or as parts: vLLM's `_detect_content_format`, rule by rule.
//!
//! It looks for a loop over the content of an item of `messages`, through variables, slices, filters, tests and macros.

use minijinja::machinery::ast::{Expr, Macro, Spanned, Stmt};

use super::ContentFormat;
use super::syntax::{Node, argument, walk};

/// vLLM's own search fails on such a template, which then counts as one for text.
struct Unreadable;

/// The format that vLLM detects.
pub(super) fn detect(template: &Stmt<'_>) -> ContentFormat {
    match Search::new(template).loops_over_content() {
        Ok(true) => ContentFormat::Parts,
        Ok(false) | Err(Unreadable) => ContentFormat::Text,
    }
}

type Loop<'t, 's> = (&'t Expr<'s>, &'t Expr<'s>);

/// The statements that matter, parents before children.
struct Search<'t, 's> {
    assignments: Vec<Loop<'t, 's>>,
    /// Target and iterable.
    loops: Vec<Loop<'t, 's>>,
    calls: Vec<&'t Expr<'s>>,
    macros: Vec<&'t Spanned<Macro<'s>>>,
}

// === impl Search ===

impl<'t, 's> Search<'t, 's> {
    fn new(template: &'t Stmt<'s>) -> Self {
        let (mut assignments, mut loops, mut calls, mut macros) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        walk(Node::Stmt(template), &mut |node| match node {
            Node::Stmt(Stmt::Set(set)) => assignments.push((&set.target, &set.expr)),
            Node::Stmt(Stmt::ForLoop(each)) => loops.push((&each.target, &each.iter)),
            Node::Stmt(Stmt::Macro(declared)) => macros.push(declared),
            Node::Expr(call @ Expr::Call(_)) => calls.push(call),
            _ => {}
        });
        Search { assignments, loops, calls, macros }
    }

    fn loops_over_content(&self) -> Result<bool, Unreadable> {
        let messages = self.message_names()?;
        let is_content =
            |expr: &Expr<'_>| messages.iter().any(|name| is_access(expr, name, Some("content")));
        let in_macros = self.loops_in_macros();
        for (target, iter) in &self.loops {
            let owner = in_macros.iter().find(|(inner, _)| std::ptr::eq(*inner, *iter));
            let named = match iter {
                Expr::Var(var) => match owner {
                    Some((_, declared)) => self.gets_content(declared, &is_content, var.id),
                    None => var.id == "content",
                },
                _ => false,
            };
            if is_content(iter) || named {
                return name(target).map(|_| true);
            }
        }
        Ok(false)
    }

    /// The variables that hold a message somewhere in the template.
    fn message_names(&self) -> Result<Vec<&'s str>, Unreadable> {
        let mut lists = vec!["messages"];
        let mut at = 0;
        while at < lists.len() {
            for (target, value) in &self.assignments {
                if is_access(value, lists[at], None) {
                    let name = name(target)?;
                    if !lists.contains(&name) {
                        lists.push(name);
                    }
                }
            }
            at += 1;
        }
        let over_messages = self
            .loops
            .iter()
            .filter(|(_, iter)| lists.iter().any(|list| is_access(iter, list, None)));
        over_messages.map(|(target, _)| name(target)).collect()
    }

    /// The iterables of loops inside macros, each with the innermost macro that is known to get a content.
    fn loops_in_macros(&self) -> Vec<(&'t Expr<'s>, &'t Macro<'s>)> {
        let mut found = Vec::new();
        for declared in self.macros.iter().rev() {
            for stmt in &declared.body {
                walk(Node::Stmt(stmt), &mut |node| {
                    if let Node::Stmt(Stmt::ForLoop(each)) = node {
                        found.push((&each.iter, &***declared));
                    }
                });
            }
        }
        found
    }

    /// Whether a call of the macro hands it a message's content as `parameter`.
    fn gets_content(
        &self,
        declared: &Macro<'s>,
        is_content: &impl Fn(&Expr<'_>) -> bool,
        parameter: &str,
    ) -> bool {
        let parameters: Vec<&str> = declared.args.iter().filter_map(|arg| name(arg).ok()).collect();
        self.calls.iter().any(|call| {
            let Expr::Call(call) = call else { return false };
            if !matches!(&call.expr, Expr::Var(var) if var.id == declared.name) {
                return false;
            }
            call.args.iter().enumerate().any(|(at, given)| {
                let (named, value) = argument(given);
                let to = named.or_else(|| parameters.get(at).copied());
                to == Some(parameter) && parameters.contains(&parameter) && is_content(value)
            })
        })
    }
}

fn name<'s>(target: &Expr<'s>) -> Result<&'s str, Unreadable> {
    match target {
        Expr::Var(var) => Ok(var.id),
        _ => Err(Unreadable),
    }
}

/// Whether `expr` is `variable`, or its `key`, or something made of either by filters, tests and slices.
fn is_access(expr: &Expr<'_>, variable: &str, key: Option<&str>) -> bool {
    let is_variable = |expr: &Expr<'_>| matches!(expr, Expr::Var(var) if var.id == variable);
    match (expr, key) {
        (Expr::Filter(filter), _) => {
            filter.expr.as_ref().is_some_and(|inner| is_access(inner, variable, key))
        }
        (Expr::Test(test), _) => is_access(&test.expr, variable, key),
        (Expr::Slice(slice), _) => is_access(&slice.expr, variable, key),
        (Expr::GetAttr(attribute), Some(key)) => {
            attribute.name == key && is_variable(&attribute.expr)
        }
        (Expr::GetItem(item), Some(key)) => {
            let is_key = matches!(&item.subscript_expr, Expr::Const(name) if name.value.as_str() == Some(key));
            is_key && is_variable(&item.expr)
        }
        (expr, None) => is_variable(expr),
        _ => false,
    }
}
