//! What can go wrong on request: for the tests of whatever stands in front of an engine.

use serde::Deserialize;

/// A fault, and how many times it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// Requests, or batches of events, that it still meets; none for all until the fault is changed.
    pub count: Option<u32>,
}

/// What happens to a request, to the engine, or to its KV events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// The engine stops listening: connections are refused. By itself it listens again after `for_ms`, if given.
    Refuse {
        /// Milliseconds until it listens again.
        for_ms: Option<u64>,
    },
    /// The connection is reset before the head of the reply.
    Reset,
    /// The connection ends after so many chunks of a stream, or in the middle of a whole reply.
    DieMidStream {
        /// Chunks that are sent before.
        after_chunks: u32,
    },
    /// No reply, and the connection stays open.
    Hang,
    /// No more bytes after so many chunks of a stream, and the connection stays open.
    HangMidStream {
        /// Chunks that are sent before.
        after_chunks: u32,
    },
    /// Everything takes `factor` times as long: the steps of the engine, or one reply when the fault has a count.
    Slow {
        /// At least 1.
        factor: f64,
    },
    /// The reply is an error.
    Status {
        /// 400 to 599.
        status: u16,
    },
    /// The engine takes no more work: 503.
    Busy(Busy),
    /// The reply's `cached_tokens` are off.
    LieCached(Lie),
    /// Batches of KV events do not arrive as they were sent. They stay in the buffer for replay.
    Events {
        /// What happens to a batch.
        mishap: Mishap,
        /// The share of batches that it happens to, 0 to 1.
        share: f64,
    },
}

/// Why an engine takes no more work, in vLLM's own bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Too many requests (`--max-num-queued-reqs`).
    Requests,
    /// Too many prompt tokens wait (`--max-num-queued-tokens`).
    Tokens,
    /// Its data-parallel size is changing. Every path answers so, but for those of the simulator.
    Scaling,
}

/// How far `cached_tokens` are off: `factor` times the truth, plus `amount`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lie {
    /// At least 0.
    pub factor: f64,
    /// May be negative; what is told never is.
    pub amount: i32,
}

/// What happens to a batch of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It is lost.
    Drop,
    /// It comes twice.
    Duplicate,
    /// It comes after the next one.
    Reorder,
}

/// The faults in force, and what is left of them. Those of the KV events are kept where events are published.
#[derive(Debug, Default)]
pub struct Faults {
    standing: Option<Fault>,
    lie: Option<Fault>,
}

/// A fault as a client writes it; `none` gives no [`Fault`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    kind: String,
    after_chunks: Option<u32>,
    factor: Option<f64>,
    status: Option<u16>,
    count: Option<u32>,
    for_ms: Option<u64>,
    share: Option<f64>,
    amount: Option<i32>,
}

const KINDS: &str = "refuse, reset, die_mid_stream, hang, hang_mid_stream, slow, status, queue_full, token_backlog, scaling, \
                     lie_cached, drop_events, duplicate_events, reorder_events, none";

// === impl Wish ===

impl Wish {
    /// The wish in a header or a flag: `kind[;after_chunks=N][;factor=F][;status=S][;count=N][;for_ms=N][;share=F][;amount=N]`.
    ///
    /// # Errors
    /// Says which part is not understood.
    pub fn parse(text: &str) -> Result<Wish, String> {
        let mut parts = text.split(';').map(str::trim);
        let mut wish =
            Wish { kind: parts.next().unwrap_or_default().to_owned(), ..Wish::default() };
        for part in parts {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not name=value"))?;
            let bad = || format!("`{value}` is no value of {name}");
            match name {
                "after_chunks" => wish.after_chunks = Some(value.parse().or(Err(bad()))?),
                "status" => wish.status = Some(value.parse().or(Err(bad()))?),
                "factor" => wish.factor = Some(value.parse().or(Err(bad()))?),
                "count" => wish.count = Some(value.parse().or(Err(bad()))?),
                "for_ms" => wish.for_ms = Some(value.parse().or(Err(bad()))?),
                "share" => wish.share = Some(value.parse().or(Err(bad()))?),
                "amount" => wish.amount = Some(value.parse().or(Err(bad()))?),
                _ => return Err(format!("unknown parameter `{name}`")),
            }
        }
        Ok(wish)
    }

    /// The fault that is wished for, or none to end those in force. What is left out is one chunk, a factor of 10, a 503,
    /// every batch of events; a lie without factor and amount tells nothing cached.
    ///
    /// # Errors
    /// Says which value is out of bounds, or names the known kinds.
    pub fn fault(&self) -> Result<Option<Fault>, String> {
        let after_chunks = self.after_chunks.unwrap_or(1);
        let events = |mishap| Effect::Events { mishap, share: self.share.unwrap_or(1.0) };
        let effect = match self.kind.as_str() {
            "none" => return Ok(None),
            "refuse" => Effect::Refuse { for_ms: self.for_ms },
            "reset" => Effect::Reset,
            "die_mid_stream" => Effect::DieMidStream { after_chunks },
            "hang" => Effect::Hang,
            "hang_mid_stream" => Effect::HangMidStream { after_chunks },
            "slow" => Effect::Slow { factor: self.factor.unwrap_or(10.0) },
            "status" => Effect::Status { status: self.status.unwrap_or(503) },
            "queue_full" => Effect::Busy(Busy::Requests),
            "token_backlog" => Effect::Busy(Busy::Tokens),
            "scaling" => Effect::Busy(Busy::Scaling),
            "lie_cached" => Effect::LieCached(self.lie()),
            "drop_events" => events(Mishap::Drop),
            "duplicate_events" => events(Mishap::Duplicate),
            "reorder_events" => events(Mishap::Reorder),
            other => return Err(format!("unknown fault kind `{other}`; known are {KINDS}")),
        };
        effect.check()?;
        Ok(Some(Fault { effect, count: self.count }))
    }

    fn lie(&self) -> Lie {
        let truth = if self.amount.is_some() { 1.0 } else { 0.0 };
        Lie { factor: self.factor.unwrap_or(truth), amount: self.amount.unwrap_or(0) }
    }
}

// === impl Effect ===

impl Effect {
    /// True if it is a request's, and not the engine's or its events'.
    #[must_use]
    pub fn meets_requests(self) -> bool {
        !matches!(self, Effect::Refuse { .. } | Effect::Events { .. })
    }

    fn check(self) -> Result<(), String> {
        let wrong = match self {
            Effect::Slow { factor } if !(1.0..=1e6).contains(&factor) => {
                "factor must be 1 to 1000000"
            }
            Effect::LieCached(Lie { factor, .. }) if !(0.0..=1e6).contains(&factor) => {
                "factor must be 0 to 1000000"
            }
            Effect::Status { status } if !(400..600).contains(&status) => {
                "status must be 400 to 599"
            }
            Effect::Events { share, .. } if !(0.0..=1.0).contains(&share) => "share must be 0 to 1",
            _ => return Ok(()),
        };
        Err(wrong.to_owned())
    }
}

// === impl Lie ===

impl Lie {
    /// What is told of so many cached tokens.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, as it should"
    )]
    pub fn tell(self, cached: u32) -> u32 {
        (f64::from(cached) * self.factor + f64::from(self.amount)).round() as u32
    }
}

// === impl Faults ===

impl Faults {
    /// Puts a fault in force in place of the one of its sort; none ends all. Gives the factor that the engine's steps now
    /// take.
    pub fn set(&mut self, fault: Option<Fault>) -> f64 {
        let left = fault.filter(|fault| fault.count != Some(0));
        match fault.map(|fault| fault.effect) {
            None => *self = Faults::default(),
            Some(Effect::LieCached(_)) => self.lie = left,
            Some(Effect::Events { .. }) => {}
            Some(_) => self.standing = left,
        }
        match self.standing {
            Some(Fault { effect: Effect::Slow { factor }, count: None }) => factor,
            _ => 1.0,
        }
    }

    /// What the next request meets.
    pub fn take(&mut self) -> Option<Effect> {
        match self.standing?.effect {
            // These two concern the engine, not a request.
            Effect::Refuse { .. } => None,
            Effect::Slow { .. } if self.standing?.count.is_none() => None,
            _ => take(&mut self.standing),
        }
    }

    /// What the next reply tells of its cached tokens, if not the truth.
    pub fn take_lie(&mut self) -> Option<Lie> {
        match take(&mut self.lie)? {
            Effect::LieCached(lie) => Some(lie),
            _ => None,
        }
    }

    /// True while every path answers that the engine is scaling.
    #[must_use]
    pub fn scales(&self) -> bool {
        matches!(self.standing, Some(Fault { effect: Effect::Busy(Busy::Scaling), count: None }))
    }
}

/// What the fault does this time.
pub(crate) fn take(slot: &mut Option<Fault>) -> Option<Effect> {
    let fault = slot.as_mut()?;
    let effect = fault.effect;
    if let Some(count) = &mut fault.count {
        *count -= 1;
        if *count == 0 {
            *slot = None;
        }
    }
    Some(effect)
}
