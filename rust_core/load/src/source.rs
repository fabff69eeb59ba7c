//! Where the workload comes from.

use nebula_sim::workload::{Workload, WorkloadError};
use serde::Deserialize;
use serde_json::Value;

/// A workload to be read or made; a missing or unknown field is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What it is read or made from, as [`Workload::from_source`] takes it.
    pub workload: Value,
    /// Equal seeds make equal workloads.
    pub seed: u64,
    /// Most sessions that are played, the first ones.
    pub sessions: usize,
    /// Tokens of each reply in place of those of the workload.
    pub output_tokens: Option<u32>,
    /// How many times faster than written users live.
    pub speed: f64,
}

// === impl Source ===

impl Source {
    /// The workload; `record` is the file that it is read from, if it is.
    ///
    /// # Errors
    /// Names the line or the field that is not as it must be.
    pub fn workload(&self, record: Option<&[u8]>) -> Result<Workload, WorkloadError> {
        let mut workload = Workload::from_source(&self.workload, record, self.seed)?;
        let all = workload.sessions.len();
        if all > self.sessions {
            workload.sessions.truncate(self.sessions);
            let note = format!("the first {} of {all} sessions are played", self.sessions);
            workload.notes.push(note);
        } else if all < self.sessions && record.is_some() {
            let note =
                format!("there are no more than {all} sessions, of {} asked for", self.sessions);
            workload.notes.push(note);
        }
        workload.speed_up(self.speed)?;
        if let Some(tokens) = self.output_tokens {
            let turns = workload.sessions.iter_mut().flat_map(|session| &mut session.turns);
            turns.for_each(|turn| turn.output_tokens = tokens.max(1));
        }
        Ok(workload)
    }
}
