//! Many engines and the rule that chooses among them, in virtual time.
//!
//! The production rules are the router itself ([`nebula_route::Router`]), fed as the gateway feeds it: the books by each
//! request, the index by the engines' events. The rules of other routers are written after their sources, to compare.
//!
//! ```text
//! config       what is simulated
//! agenda       what happens next
//! host         an engine and what it has on its hands
//! rule         how a rule is asked and told
//! production   the rules of the router, by running it
//! affinity     vllm-router's and SGLang's cache_aware
//! blocks       Dynamo's cost
//! scores       llm-d's weighted sum
//! queueing     SMG's least_load
//! oracle       a greedy choice that knows everything
//! record       what became of each request
//! report       all of it in figures
//! ```

mod affinity;
mod agenda;
mod blocks;
mod config;
mod host;
mod oracle;
mod production;
mod queueing;
mod record;
mod report;
mod rule;
mod scores;

use nebula_route::Chain;
use serde_json::Value;

use crate::timing::{Nanos, nanos};
use crate::workload::{Conversation, Workload};
use crate::{Emission, Finish, Request, SeqId, hash};
use agenda::{Agenda, Happening};
pub use config::{Delivery, FleetConfig, FleetError, Slo};
use host::Host;
use record::{Gaps, Record};
pub use report::Report;
use rule::{Ask, Rule};
pub use rule::{SIM_POLICIES, is_policy};

/// How often a rule may look around: scrape engines, drop what is over.
const TICK: Nanos = 1_000_000_000;

/// A fleet that answers a workload.
pub struct Fleet {
    config: FleetConfig,
    workload: Workload,
    hosts: Vec<Host>,
    rule: Box<dyn Rule>,
    agenda: Agenda,
    /// By request id.
    records: Vec<Record>,
    /// What is said so far in each session that goes on.
    conversations: Vec<Conversation>,
    gaps: Gaps,
    ended: usize,
    next_tick: Nanos,
    luck: fastrand::Rng,
    /// Kept between steps to spare the allocation.
    emissions: Vec<Emission>,
}

// === impl Fleet ===

impl Fleet {
    /// A fleet at time 0, from one document: the fields of [`FleetConfig`], and as `workload` what
    /// [`Workload::from_source`] takes. `trace` is the file that the workload is read from, if it is.
    ///
    /// # Errors
    /// As [`Fleet::new`]; a document or a file that is not as it must be.
    pub fn from_json(document: &[u8], trace: Option<&[u8]>) -> Result<Fleet, FleetError> {
        let mut document: Value = serde_json::from_slice(document)?;
        let source = document.as_object_mut().and_then(|fields| fields.remove("workload"));
        let config: FleetConfig = serde_json::from_value(document)?;
        let workload = Workload::from_source(&source.unwrap_or_default(), trace, config.seed)?;
        Fleet::new(config, workload)
    }

    /// A fleet at time 0.
    ///
    /// # Errors
    /// [`FleetError`] names the setting that is wrong, or the request that no engine could hold.
    pub fn new(config: FleetConfig, mut workload: Workload) -> Result<Fleet, FleetError> {
        config.check()?;
        workload.speed_up(config.speed)?;
        config.check_fits(&workload)?;
        let rule = rule::of(&config)?;
        let mut hosts: Vec<Host> = (0..config.engines).map(|_| Host::new(&config.engine)).collect();
        if rule.wants_events() {
            for host in &mut hosts {
                host.engine.record_events();
            }
        }
        let mut agenda = Agenda::default();
        for (index, session) in workload.sessions.iter().enumerate() {
            agenda.put(session.arrives, Happening::Ask { session: index, turn: 0 });
        }
        Ok(Fleet {
            conversations: vec![Conversation::new(); workload.sessions.len()],
            records: Vec::with_capacity(workload.requests()),
            luck: fastrand::Rng::with_seed(config.seed),
            config,
            workload,
            hosts,
            rule,
            agenda,
            gaps: Gaps::new(),
            ended: 0,
            next_tick: 0,
            emissions: Vec::new(),
        })
    }

    /// Requests in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.workload.requests()
    }

    /// What was assumed while the workload was read.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.workload.notes
    }

    /// Goes on until `requests` more have ended, or all; gives how many have ended so far.
    ///
    /// # Errors
    /// [`FleetError::Rule`] if the rule finds no engine.
    pub fn advance(&mut self, requests: usize) -> Result<usize, FleetError> {
        let until = self.ended.saturating_add(requests).min(self.total());
        while self.ended < until {
            let Some((now, happening)) = self.agenda.next() else { break };
            if now >= self.next_tick {
                self.rule.tick(&self.hosts, now);
                self.next_tick = now - now % TICK + TICK;
            }
            match happening {
                Happening::Ask { session, turn } => self.ask(session, turn, now)?,
                Happening::Step { host } => self.step(host, now),
                Happening::Told { host, events } => self.rule.told(host, &events),
            }
        }
        Ok(self.ended)
    }

    /// What became of the requests that have ended.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::of(&self.config, &self.workload, &self.hosts, &self.records, &self.gaps)
    }

    fn ask(&mut self, session: usize, turn: usize, now: Nanos) -> Result<(), FleetError> {
        let Session { key, ask } = Session::of(&self.workload, session, turn);
        let prompt = self.conversations[session].ask(ask).to_vec();
        let chain = Chain::from_tokens(&self.config.scope(), &prompt);
        let id = self.records.len();
        let asked = Ask { id, chain: &chain, tokens: &prompt, session: key };
        let chosen = self.rule.choose(&asked, &self.hosts, now)?;
        self.records.push(Record::new(session, turn, chosen, &prompt, now));
        self.hosts[chosen.host].engine.submit(
            Request {
                id: id as SeqId,
                prompt,
                chain_seed: hash::chain_seed(""),
                max_tokens: ask.output_tokens,
                finish: Finish::Length,
            },
            now,
        );
        if self.hosts[chosen.host].engine.ends().is_none() {
            self.step(chosen.host, now);
        }
        Ok(())
    }

    /// Ends the step of a host, if it has one, and starts the next.
    fn step(&mut self, host: usize, now: Nanos) {
        let mut emissions = std::mem::take(&mut self.emissions);
        if let Some(ends) = self.hosts[host].step(now, &mut emissions) {
            self.agenda.put(ends, Happening::Step { host });
        }
        for emission in emissions.drain(..) {
            self.token(emission, now);
        }
        self.emissions = emissions;
        self.tell(host, now);
    }

    fn token(&mut self, emission: Emission, now: Nanos) {
        #[expect(clippy::cast_possible_truncation, reason = "ids are indexes")]
        let id = emission.id as usize;
        let record = &mut self.records[id];
        if emission.produced == 1 {
            record.first_token(emission.cached, now);
            self.rule.answered(id, now);
        } else {
            self.gaps.note(now - record.last_token);
        }
        record.last_token = now;
        record.output = emission.produced;
        if emission.finished {
            record.finished = true;
            self.ended += 1;
            self.rule.ended(id);
            self.hosts[record.host].note(record);
            self.go_on(id, now);
        }
    }

    /// Plans the next turn of a conversation, or lets it go.
    fn go_on(&mut self, id: usize, now: Nanos) {
        let Record { session, turn, reply, output, .. } = self.records[id];
        let conversation = &mut self.conversations[session];
        match self.workload.sessions[session].turns.get(turn + 1) {
            Some(next) => {
                let said: Vec<u32> = (0..output).map(|index| reply.token(index)).collect();
                conversation.answer(&said);
                let at = now.saturating_add(next.think);
                self.agenda.put(at, Happening::Ask { session, turn: turn + 1 });
            }
            None => *conversation = Conversation::new(),
        }
    }

    /// Sends what happened to the cache of a host on its way to the rule.
    fn tell(&mut self, host: usize, now: Nanos) {
        let events = self.hosts[host].take_events(&self.config);
        let Some(Delivery { delay_ms, loss }) = self.config.events else { return };
        if events.is_empty() || self.luck.f64() < loss {
            return;
        }
        let at = now.saturating_add(nanos(delay_ms * 1e6));
        self.agenda.put(at, Happening::Told { host, events });
    }
}

/// One turn, and the conversation that it belongs to.
struct Session<'a> {
    key: u64,
    ask: &'a crate::workload::Turn,
}

impl<'a> Session<'a> {
    fn of(workload: &'a Workload, session: usize, turn: usize) -> Session<'a> {
        let session = &workload.sessions[session];
        Session { key: session.key, ask: &session.turns[turn] }
    }
}
