//! Tokens that an engine tells: its `/tokenize`, and what it said before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use lru::LruCache;
use nebula_route::{Engine, Status};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::timeout;

use crate::context::Context;
use crate::error::Error;
use crate::prompt::Ask;

/// What an entry takes beside its ids.
const ENTRY_BYTES: usize = 128;
/// Largest answer that is read: a million ids.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Answers by the question, bounded in bytes; the one that was asked for longest ago goes first.
pub(crate) struct Remote {
    answers: Mutex<Answers>,
    max_bytes: usize,
}

struct Answers {
    by_hash: LruCache<u128, Arc<[u32]>>,
    bytes: usize,
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
}

// === impl Remote ===

impl Remote {
    pub(crate) fn new(max_bytes: usize) -> Remote {
        let answers = Answers { by_hash: LruCache::unbounded(), bytes: 0 };
        Remote { answers: Mutex::new(answers), max_bytes }
    }

    /// What an engine said before.
    pub(crate) fn known(&self, ask: &Ask) -> Option<Arc<[u32]>> {
        self.answers.lock().by_hash.get(&ask.hash).cloned()
    }

    /// The tokens of a prompt, from any ready engine that has the model.
    ///
    /// # Errors
    /// Why there are none: nobody is ready, or the one that was asked refused or was too slow.
    pub(crate) async fn tokens(&self, context: &Context, ask: &Ask) -> Result<Arc<[u32]>, String> {
        if let Some(known) = self.known(ask) {
            return Ok(known);
        }
        let ready: Vec<_> = context.router.engines_of(&ask.model);
        let ready: Vec<_> =
            ready.into_iter().filter(|engine| engine.status() == Status::Ready).collect();
        let engine = fastrand::choice(&ready).ok_or("no engine is ready to tokenise it")?;
        let ids = tokenize(context, engine, ask.body.clone()).await.map_err(Silence::why)?;
        let ids: Arc<[u32]> = ids.into();
        self.keep(ask.hash, &ids);
        Ok(ids)
    }

    /// Bytes of the answers that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.answers.lock().bytes
    }

    fn keep(&self, hash: u128, ids: &Arc<[u32]>) {
        let mut answers = self.answers.lock();
        if let Some(before) = answers.by_hash.put(hash, Arc::clone(ids)) {
            answers.bytes -= size(&before);
        }
        answers.bytes += size(ids);
        while answers.bytes > self.max_bytes
            && let Some((_, oldest)) = answers.by_hash.pop_lru()
        {
            answers.bytes -= size(&oldest);
        }
    }
}

impl Silence {
    /// In words.
    pub(crate) fn why(self) -> String {
        let (Silence::Refused(why) | Silence::Unreachable(why)) = self;
        why
    }
}

fn size(ids: &Arc<[u32]>) -> usize {
    size_of_val::<[u32]>(ids) + ENTRY_BYTES
}

/// Why an engine told no tokens.
#[derive(Debug)]
pub(crate) enum Silence {
    /// It will not.
    Refused(String),
    /// It did not answer now.
    Unreachable(String),
}

/// What one engine makes of the body of a request for `/tokenize`.
///
/// # Errors
/// Its refusal, or why there is no answer.
pub(crate) async fn tokenize(
    context: &Context,
    engine: &Engine,
    body: Bytes,
) -> Result<Vec<u32>, Silence> {
    let limit_ms = context.config.tokens.tokenize_timeout_ms;
    let name = &engine.spec().name;
    let answer = context.upstream.post(engine, "/tokenize", body, ANSWER_BYTES);
    let answer = timeout(Duration::from_millis(limit_ms), answer).await;
    let answer = answer.unwrap_or_else(|_| Err(Error::timeout(name, "/tokenize", limit_ms)));
    let (status, body) = answer.map_err(|error| Silence::Unreachable(error.to_string()))?;
    if status != 200 {
        let why = format!("/tokenize answered {}", status.as_u16());
        let later = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        return Err(if later { Silence::Unreachable(why) } else { Silence::Refused(why) });
    }
    serde_json::from_slice(&body)
        .map(|answer: Answer| answer.tokens)
        .map_err(|cause| Silence::Refused(format!("/tokenize: an answer without tokens: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_within_their_bytes_and_the_oldest_goes_first() {
        let remote = Remote::new(3 * (400 + ENTRY_BYTES));
        let ids: Arc<[u32]> = vec![7; 100].into();
        for hash in 0..4 {
            remote.keep(hash, &ids);
            remote.keep(hash, &ids);
        }
        let ask = |hash| Ask { model: String::new(), body: Bytes::new(), hash };
        assert!(remote.known(&ask(0)).is_none());
        assert_eq!(remote.known(&ask(3)).as_deref(), Some(&[7; 100][..]));
        assert_eq!(remote.bytes(), 3 * (400 + ENTRY_BYTES));
    }
}
