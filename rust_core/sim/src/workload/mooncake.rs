//! Traces in Mooncake's format (Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST '25).

use serde::Deserialize;

use crate::timing::nanos;
use crate::workload::words::mix;
use crate::workload::{
    Message, Piece, Role, Session, Turn, Workload, WorkloadError, line, lineage,
};

/// Tokens that one hash id stands for in Mooncake's traces.
pub const TOKENS_PER_ID: u32 = 512;

/// One line. Further fields are passed over: variants of the format carry more.
#[derive(Deserialize)]
struct Row {
    /// Milliseconds.
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    /// Equal ids mean equal tokens, and equal tokens before them.
    hash_ids: Vec<u64>,
}

impl Workload {
    /// The requests of a trace: one JSON object per line with `timestamp` (ms), `input_length`, `output_length` and
    /// `hash_ids`, each id standing for `tokens_per_id` tokens ([`TOKENS_PER_ID`]) and the last one for the rest.
    ///
    /// Each request is a session of one turn with one user message, one piece per id. Lines need not be sorted; time
    /// counts from the earliest. A reply of length 0 gets one token, as an engine gives no fewer. The trace names no
    /// conversations: a request has the key of the one that was first to hold its deepest known block, unless that is
    /// the first block of all or one that many share.
    ///
    /// # Errors
    /// Names the line and the field that is not as it must be; a trace without a request.
    pub fn mooncake(text: &[u8], tokens_per_id: u32) -> Result<Workload, WorkloadError> {
        if tokens_per_id == 0 {
            return Err(WorkloadError::field("tokens_per_id", "must be at least 1"));
        }
        let mut rows = Vec::new();
        for (number, line) in line::lines(text) {
            let row: Row = line::parse(number, line)?;
            row.check(number, tokens_per_id)?;
            rows.push(row);
        }
        rows.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
        let start = match rows.first() {
            Some(row) => row.timestamp,
            None => return Err(WorkloadError::Whole("the trace holds no request".to_owned())),
        };
        let keys = lineage::keys(rows.iter().map(|row| row.hash_ids.as_slice()));
        let silent = rows.iter().filter(|row| row.output_length == 0).count();
        let sessions = rows.iter().zip(keys).map(|(row, key)| Session {
            arrives: nanos((row.timestamp - start) * 1e6),
            key,
            turns: vec![row.turn(tokens_per_id)],
        });
        let notes = (silent > 0).then(|| {
            format!("{silent} requests have output_length 0: their replies get one token")
        });
        Ok(Workload {
            name: "mooncake".to_owned(),
            sessions: sessions.collect(),
            notes: notes.into_iter().collect(),
        })
    }
}

// === impl Row ===

/// Latest time of a trace: far beyond now in milliseconds since 1970, and a number that nanoseconds have room for.
const LATEST_MS: f64 = 1e13;

impl Row {
    fn check(&self, number: usize, tokens_per_id: u32) -> Result<(), WorkloadError> {
        if !(0.0..=LATEST_MS).contains(&self.timestamp) {
            let reason = format!("must be 0 to {LATEST_MS:.0} ms, is {}", self.timestamp);
            return Err(WorkloadError::line(number, "timestamp", reason));
        }
        let ids = self.hash_ids.len() as u64;
        if ids == 0 {
            return Err(WorkloadError::line(number, "hash_ids", "must hold at least one id"));
        }
        let most = ids * u64::from(tokens_per_id);
        let least = most - u64::from(tokens_per_id) + 1;
        if !(least..=most).contains(&u64::from(self.input_length)) {
            let reason = format!(
                "must be {least} to {most} for {ids} hash_ids of {tokens_per_id} tokens, is {}",
                self.input_length
            );
            return Err(WorkloadError::line(number, "input_length", reason));
        }
        Ok(())
    }

    fn turn(&self, tokens_per_id: u32) -> Turn {
        let mut left = self.input_length;
        let pieces = self.hash_ids.iter().map(|&id| {
            let tokens = left.min(tokens_per_id);
            left -= tokens;
            Piece::Words { seed: mix(id), tokens }
        });
        let message = Message { role: Role::User, pieces: pieces.collect() };
        Turn { messages: vec![message], output_tokens: self.output_length.max(1), think: 0 }
    }
}
