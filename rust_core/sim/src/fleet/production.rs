//! The router's own rules, by running the router.

use nebula_route::event::Event;
use nebula_route::{
    Chain, Choice, EngineSpec, Facts, Millis, ModelFact, Probe, Query, RankId, Router, Tier,
};

use super::host::Host;
use super::rule::{Ask, Chosen, MODEL, Rule};
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

/// The router, and what it has booked.
pub(super) struct Production {
    router: Router,
    listens: bool,
    /// By request id; gone once the request is done.
    open: Vec<Option<(Choice, Chain)>>,
}

// === impl Production ===

impl Production {
    pub(super) fn new(config: &FleetConfig) -> Result<Production, FleetError> {
        let mut route = config.route.clone();
        route.policy.clone_from(&config.policy);
        let listens = config.events.is_some() && config.policy == "kv";
        let router = Router::new(route, config.seed)?;
        let spec = |n| EngineSpec {
            name: format!("engine-{n}"),
            url: "http://sim".to_owned(),
            ranks: 1,
            ..EngineSpec::default()
        };
        router.set_engines((0..config.engines).map(spec).collect())?;
        let model = ModelFact { id: MODEL.to_owned(), ..ModelFact::default() };
        let facts = Facts {
            models: vec![model],
            block_size: Some(config.engine.block_size),
            kv_blocks: Some(config.engine.kv_blocks.into()),
            ..Facts::default()
        };
        for engine in router.engines() {
            router.learn(&engine, facts.clone());
            router.probe(&engine, Probe::Healthy, 0);
            if let Some(belief) = engine.belief(0) {
                belief.set_events(listens);
            }
        }
        Ok(Production { router, listens, open: Vec::new() })
    }
}

impl Rule for Production {
    fn choose(&mut self, ask: &Ask<'_>, _hosts: &[Host], now: Nanos) -> Result<Chosen, FleetError> {
        let session = ask.session.to_string();
        let query = Query {
            model: MODEL,
            chain: ask.chain,
            other_chains: &[],
            session: Some(&session),
            rank: None,
            engine: None,
            excluded: &[],
        };
        let choice = self.router.route(&query, millis(now))?;
        let chosen = Chosen { host: choice.rank.0 as usize, predicted: choice.overlap_tokens() };
        self.open.resize_with(ask.id + 1, || None);
        self.open[ask.id] = Some((choice, ask.chain.clone()));
        Ok(chosen)
    }

    fn wants_events(&self) -> bool {
        self.listens
    }

    fn answered(&mut self, id: usize, now: Nanos) {
        if let Some(Some((choice, chain))) = self.open.get(id) {
            choice.guard.first_byte();
            self.router.keep(choice, chain, millis(now));
        }
    }

    fn ended(&mut self, id: usize) {
        self.open[id] = None;
    }

    fn told(&mut self, host: usize, events: &[Event]) {
        self.router.apply(rank(host), Tier::Gpu, events);
    }

    fn tick(&mut self, hosts: &[Host], now: Nanos) {
        self.router.expire(millis(now));
        for (engine, host) in self.router.engines().iter().zip(hosts) {
            #[expect(clippy::cast_possible_truncation, reason = "a share needs no more precision")]
            let usage = host.engine.scheduler().cache().usage() as f32;
            self.router.set_kv_usage(engine, 0, usage);
        }
    }
}

/// The rank of a host: engines of one rank each are numbered in order.
pub(super) fn rank(host: usize) -> RankId {
    RankId(u32::try_from(host).unwrap_or(u32::MAX))
}

pub(super) fn millis(now: Nanos) -> Millis {
    now / 1_000_000
}
