//! Replay of the gateway's own log of decisions.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::timing::Nanos;
use crate::workload::words::mix;
use crate::workload::{
    Message, Piece, Role, Session, Turn, Workload, WorkloadError, line, lineage,
};

/// What tells the lines of requests from all others of the log.
const TARGET: &str = "nebula.request";
/// Hexadecimal digits of one hash.
const DIGITS: usize = 16;

/// The setting that a replay needs, for messages.
const SETTING: &str = "gateway.log_prompt_hashes = true";

#[derive(Deserialize)]
struct Head {
    target: String,
}

/// The fields of a request's line that a replay needs.
#[derive(Deserialize)]
struct Row {
    /// When the request had ended, RFC 3339.
    timestamp: String,
    status: u16,
    /// Tokens of the prompt.
    prompt: u32,
    /// Tokens of the reply, where the engine told.
    completion: Option<u32>,
    total_ms: f64,
    /// Hashes of the prompt: each of a part and all before it, and the last one of what is left in full blocks.
    blocks: Option<String>,
    /// Tokens in the part that one hash stands for.
    block_tokens: Option<f64>,
}

/// A request that can be replayed.
struct Asked {
    arrived: SystemTime,
    hashes: Vec<u64>,
    block_tokens: f64,
    prompt: u32,
    completion: Option<u32>,
}

/// Lines that are no part of the workload.
#[derive(Default)]
struct LeftOut {
    failed: usize,
    without_blocks: usize,
}

impl Workload {
    /// The requests of the gateway's JSON log, which is written with `gateway.log_format = "json"` and
    /// `gateway.log_prompt_hashes = true`: one session of one turn for each that ended well (2xx), when it came. Lines
    /// that are no requests are passed over.
    ///
    /// Prompts that began alike begin alike again, to the hash: every 512 tokens or so. A reply of unknown length (a
    /// stream without `stream_options.include_usage`) gets the median of the known ones. Conversations are told apart
    /// as in [`Workload::mooncake`].
    ///
    /// # Errors
    /// Names the line and the field that is not as it must be; a log without a request that can be replayed.
    pub fn decisions(text: &[u8]) -> Result<Workload, WorkloadError> {
        let mut asked = Vec::new();
        let mut left_out = LeftOut::default();
        for (number, line) in line::lines(text).filter(|(_, line)| is_request(line)) {
            let row: Row = line::parse(number, line)?;
            match &row.blocks {
                _ if !(200..300).contains(&row.status) => left_out.failed += 1,
                None => left_out.without_blocks += 1,
                Some(blocks) => asked.push(row.asked(number, blocks)?),
            }
        }
        asked.sort_by_key(|it| it.arrived);
        let Some(start) = asked.first().map(|it| it.arrived) else {
            return Err(left_out.nothing(text));
        };
        let (usual, estimated) = usual_completion(&asked)?;
        let keys = lineage::keys(asked.iter().map(|it| it.hashes.as_slice()));
        let sessions = asked.iter().zip(keys).enumerate().map(|(number, (it, key))| Session {
            arrives: it.since(start),
            key,
            turns: vec![it.turn(number as u64, usual)],
        });
        let mut notes = left_out.notes();
        if estimated > 0 {
            notes.push(format!(
                "{estimated} of {} replies are of unknown length: taken as {usual} tokens, the median of the others",
                asked.len()
            ));
        }
        Ok(Workload { name: "decisions".to_owned(), sessions: sessions.collect(), notes })
    }
}

/// Whether a line of the log is of a request. Other lines may be text.
fn is_request(line: &[u8]) -> bool {
    serde_json::from_slice::<Head>(line).is_ok_and(|head| head.target == TARGET)
}

/// The median of the known lengths of replies, and how many are not known.
fn usual_completion(asked: &[Asked]) -> Result<(u32, usize), WorkloadError> {
    let mut known: Vec<u32> = asked.iter().filter_map(|it| it.completion).collect();
    known.sort_unstable();
    let Some(&median) = known.get(known.len() / 2) else {
        let reason = "no request of the log has a `completion`: engines tell the length of a reply that is not \
                      streamed, or streamed with stream_options.include_usage";
        return Err(WorkloadError::Whole(reason.to_owned()));
    };
    Ok((median, asked.len() - known.len()))
}

// === impl Row ===

impl Row {
    fn asked(&self, line: usize, blocks: &str) -> Result<Asked, WorkloadError> {
        let ended = humantime::parse_rfc3339(&self.timestamp).map_err(|cause| {
            let reason = format!("must be a time such as 2026-01-31T12:00:00Z: {cause}");
            WorkloadError::line(line, "timestamp", reason)
        })?;
        let took = Duration::try_from_secs_f64(self.total_ms / 1e3).ok();
        let arrived = took.and_then(|took| ended.checked_sub(took)).ok_or_else(|| {
            let reason = format!("must be at least 0, is {}", self.total_ms);
            WorkloadError::line(line, "total_ms", reason)
        })?;
        let hashes = hashes(blocks).ok_or_else(|| {
            let reason = format!("must be hashes of {DIGITS} hexadecimal digits each");
            WorkloadError::line(line, "blocks", reason)
        })?;
        let block_tokens = self.block_tokens.unwrap_or_default();
        if !hashes.is_empty() && block_tokens < 1.0 {
            let reason = format!("must be at least 1 where there are blocks, is {block_tokens}");
            return Err(WorkloadError::line(line, "block_tokens", reason));
        }
        Ok(Asked {
            arrived,
            hashes,
            block_tokens,
            prompt: self.prompt,
            completion: self.completion,
        })
    }
}

/// The numbers that are written without anything in between.
fn hashes(digits: &str) -> Option<Vec<u64>> {
    let parts = digits.as_bytes().chunks(DIGITS).map(|part| {
        let digits = part.len() == DIGITS && part.iter().all(u8::is_ascii_hexdigit);
        let part = std::str::from_utf8(part).ok().filter(|_| digits)?;
        u64::from_str_radix(part, 16).ok()
    });
    parts.collect()
}

// === impl Asked ===

impl Asked {
    fn since(&self, start: SystemTime) -> Nanos {
        let since = self.arrived.duration_since(start).unwrap_or_default();
        Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX)
    }

    fn turn(&self, number: u64, usual_completion: u32) -> Turn {
        let output_tokens = self.completion.unwrap_or(usual_completion).max(1);
        let message = Message { role: Role::User, pieces: self.pieces(number) };
        Turn { messages: vec![message], output_tokens, think: 0 }
    }

    /// One piece per hash, and one for what no hash stands for, which no other request shares.
    fn pieces(&self, number: u64) -> Vec<Piece> {
        let prompt = self.prompt.max(1);
        let mut told = 0;
        let mut pieces = Vec::with_capacity(self.hashes.len() + 1);
        for (&seed, place) in self.hashes.iter().zip(1_u32..) {
            let end = end_of(place, self.block_tokens).min(prompt);
            pieces.push(Piece::Words { seed, tokens: end - told });
            told = end;
        }
        pieces.push(Piece::Words { seed: mix(!number), tokens: prompt - told });
        pieces.retain(|piece| piece.token_count() > 0);
        pieces
    }
}

/// Where the part number `place` (from 1) ends: the same in all prompts, so that equal parts stand at equal places.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and no part ends before 0"
)]
fn end_of(place: u32, block_tokens: f64) -> u32 {
    (f64::from(place) * block_tokens).round() as u32
}

// === impl LeftOut ===

impl LeftOut {
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.failed > 0 {
            notes.push(format!("{} requests did not end well and are left out", self.failed));
        }
        if self.without_blocks > 0 {
            notes.push(format!(
                "{} requests without hashes are left out: they were logged without {SETTING}, or generate nothing",
                self.without_blocks
            ));
        }
        notes
    }

    /// Why there is nothing to replay.
    fn nothing(&self, text: &[u8]) -> WorkloadError {
        let as_text =
            || line::lines(text).any(|(_, line)| !line.trim_ascii_start().starts_with(b"{"));
        WorkloadError::Whole(if self.without_blocks > 0 {
            format!(
                "no request of the log can be replayed: set {SETTING} to log the hashes of prompts"
            )
        } else if self.failed > 0 {
            format!("none of the {} requests in the log ended well", self.failed)
        } else if as_text() {
            format!("no request in the log: set gateway.log_format = \"json\" and {SETTING}")
        } else {
            "no request in the log: set gateway.log_requests = true".to_owned()
        })
    }
}
