//! What can go wrong on request: for the tests of whatever stands in front of an engine.

use serde::Deserialize;

/// A fault, and how many requests it meets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// Requests that it still meets; none for all until the fault is changed.
    pub count: Option<u32>,
}

/// What happens to a request, or to the engine.
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
}

/// The fault in force, and what is left of it.
#[derive(Debug, Default)]
pub struct Faults {
    standing: Option<Fault>,
}

/// A fault as a client writes it; `none` gives no [`Fault`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    kind: String,
    after_chunks: Option<u32>,
    factor: Option<f64>,
    status: Option<u16>,
    count: Option<u32>,
    for_ms: Option<u64>,
}

const KINDS: &str = "refuse, reset, die_mid_stream, hang, hang_mid_stream, slow, status, none";

// === impl Wish ===

impl Wish {
    /// The wish in a header: `kind[;after_chunks=N][;factor=F][;status=S]`.
    ///
    /// # Errors
    /// Says which part is not understood.
    pub fn parse(header: &str) -> Result<Wish, String> {
        let mut parts = header.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_owned();
        let mut wish = Wish {
            kind,
            after_chunks: None,
            factor: None,
            status: None,
            count: None,
            for_ms: None,
        };
        for part in parts {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not name=value"))?;
            let bad = || format!("`{value}` is no value of {name}");
            match name {
                "after_chunks" => wish.after_chunks = Some(value.parse().or(Err(bad()))?),
                "status" => wish.status = Some(value.parse().or(Err(bad()))?),
                "factor" => wish.factor = Some(value.parse().or(Err(bad()))?),
                _ => return Err(format!("unknown parameter `{name}`")),
            }
        }
        Ok(wish)
    }

    /// The fault that is wished for, or none to end the one in force. What is left out is one chunk, a factor of 10, a 503.
    ///
    /// # Errors
    /// Says which value is out of bounds, or names the known kinds.
    pub fn fault(&self) -> Result<Option<Fault>, String> {
        let after_chunks = self.after_chunks.unwrap_or(1);
        let effect = match self.kind.as_str() {
            "none" => return Ok(None),
            "refuse" => Effect::Refuse { for_ms: self.for_ms },
            "reset" => Effect::Reset,
            "die_mid_stream" => Effect::DieMidStream { after_chunks },
            "hang" => Effect::Hang,
            "hang_mid_stream" => Effect::HangMidStream { after_chunks },
            "slow" => Effect::Slow { factor: self.factor.unwrap_or(10.0) },
            "status" => Effect::Status { status: self.status.unwrap_or(503) },
            other => return Err(format!("unknown fault kind `{other}`; known are {KINDS}")),
        };
        match effect {
            Effect::Slow { factor } if !(1.0..=1e6).contains(&factor) => {
                Err("factor must be 1 to 1000000".to_owned())
            }
            Effect::Status { status } if !(400..600).contains(&status) => {
                Err("status must be 400 to 599".to_owned())
            }
            effect => Ok(Some(Fault { effect, count: self.count })),
        }
    }
}

// === impl Faults ===

impl Faults {
    /// Replaces the fault in force. Gives the factor that the engine's steps now take.
    pub fn set(&mut self, fault: Option<Fault>) -> f64 {
        self.standing = fault.filter(|fault| fault.count != Some(0));
        match self.standing {
            Some(Fault { effect: Effect::Slow { factor }, count: None }) => factor,
            _ => 1.0,
        }
    }

    /// What the next request meets.
    pub fn take(&mut self) -> Option<Effect> {
        let fault = self.standing.as_mut()?;
        let effect = match (fault.effect, fault.count) {
            // These two concern the engine, not a request.
            (Effect::Refuse { .. }, _) | (Effect::Slow { .. }, None) => return None,
            (effect, _) => effect,
        };
        if let Some(count) = &mut fault.count {
            *count -= 1;
            if *count == 0 {
                self.standing = None;
            }
        }
        Some(effect)
    }
}
