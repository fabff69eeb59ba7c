//! What an engine reports of the tokens of a request: asked for, taken out of the reply again, and read.
//!
//! A streamed chat or completion tells it only if the request says so, in one more event before `data: [DONE]`. Where
//! the client did not ask, [`ask`] asks in its place, and [`Strip`] gives it the bytes that it would have got without.

mod ask;
mod strip;

use memchr::memmem;
use serde::Deserialize;

pub use ask::{Wishes, ask, present};
pub use strip::Strip;

/// What the engine reports at the end of a reply.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt, those from the cache among them.
    pub prompt: Option<u64>,
    /// Those of them that came from the engine's cache.
    pub cached: Option<u64>,
    /// Tokens of the reply.
    pub completion: Option<u64>,
}

/// The object as each of the three APIs names its parts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    // Chat and text completions.
    prompt_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    completion_tokens: Option<u64>,
    // Responses and Messages.
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    // Responses.
    input_tokens_details: Option<Details>,
    // Messages, which leaves both out of `input_tokens`.
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

// === impl Usage ===

impl Usage {
    /// The figures of the last `"usage"` object in a chunk, read where they stand; text that only looks like one is
    /// escaped inside its JSON string and so cannot match. Nothing where there is none, or where the chunk cuts it.
    #[must_use]
    pub fn read(chunk: &[u8]) -> Usage {
        // The last is not always it: a reply of the Responses API repeats the schemas of the client's tools.
        memmem::rfind_iter(chunk, b"\"usage\"")
            .filter_map(|at| Usage::of(after_colon(&chunk[at + b"\"usage\"".len()..])?))
            .find(|usage| *usage != Usage::default())
            .unwrap_or_default()
    }

    /// The figures of an object at the start of `json`; what follows it is not looked at.
    fn of(json: &[u8]) -> Option<Usage> {
        // Serde would take an array for the fields in order.
        if !json.starts_with(b"{") {
            return None;
        }
        let names = Names::deserialize(&mut serde_json::Deserializer::from_slice(json)).ok()?;
        Some(names.into())
    }

    /// These figures, and those of `other` where there are none.
    #[must_use]
    pub fn or(self, other: Usage) -> Usage {
        Usage {
            prompt: self.prompt.or(other.prompt),
            cached: self.cached.or(other.cached),
            completion: self.completion.or(other.completion),
        }
    }
}

impl From<Names> for Usage {
    fn from(names: Names) -> Usage {
        let beside = [names.cache_read_input_tokens, names.cache_creation_input_tokens];
        let input = names
            .input_tokens
            .map(|tokens| beside.into_iter().flatten().fold(tokens, u64::saturating_add));
        let details = names.prompt_tokens_details.or(names.input_tokens_details);
        Usage {
            prompt: names.prompt_tokens.or(input),
            cached: details
                .and_then(|details| details.cached_tokens)
                .or(names.cache_read_input_tokens),
            completion: names.completion_tokens.or(names.output_tokens),
        }
    }
}

/// What stands behind a key: the bytes after the colon and the spaces around it.
fn after_colon(bytes: &[u8]) -> Option<&[u8]> {
    Some(bytes.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u64, cached: Option<u64>, completion: u64) -> Usage {
        Usage { prompt: Some(prompt), cached, completion: Some(completion) }
    }

    #[test]
    fn usage_is_read_from_a_chunk_and_from_a_whole_reply() {
        let chunk = br#"data: {"choices":[],"usage":{"prompt_tokens":11,"total_tokens":17,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":8}}}"#;
        assert_eq!(Usage::read(chunk), usage(11, Some(8), 6));
        assert_eq!(
            Usage::read(br#"{"content":"\"usage\":{\"prompt_tokens\":5}"}"#),
            Usage::default()
        );
        assert_eq!(
            Usage::read(br#"{"usage":{"prompt_tokens":3,"prompt_tokens_details":null}}"#).cached,
            None
        );
        let message =
            br#"{"usage":{"input_tokens":3,"output_tokens_details":{},"output_tokens":9}}"#;
        assert_eq!(Usage::read(message).completion, Some(9));
    }

    #[test]
    fn the_responses_api_has_other_names_for_it() {
        let reply = br#"{"tools":[{"parameters":{"usage":{"type":"object"}}}],"usage":{"input_tokens":111,"input_tokens_details":{"cached_tokens":96,"cached_tokens_per_turn":[]},"output_tokens":3,"total_tokens":114},"user":null}"#;
        assert_eq!(Usage::read(reply), usage(111, Some(96), 3));
        let schema_last = br#"{"usage":{"input_tokens":1,"output_tokens":3},"tools":[{"parameters":{"usage":{"type":"object"}}}]}"#;
        assert_eq!(Usage::read(schema_last), usage(1, None, 3));
    }

    #[test]
    fn the_messages_api_counts_what_was_cached_beside_its_input() {
        let reply = br#"{"usage":{"input_tokens":15,"output_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":96}}"#;
        assert_eq!(Usage::read(reply), usage(111, Some(96), 3));
    }

    #[test]
    fn spaces_do_not_matter_and_what_is_cut_is_not_read() {
        let spaced = br#"{"usage" : { "prompt_tokens": 7, "completion_tokens": 1 } , "x": 1}"#;
        assert_eq!(Usage::read(spaced), usage(7, None, 1));
        assert_eq!(Usage::read(&spaced[..25]), Usage::default());
        assert_eq!(Usage::read(br#"{"usage":null,"prompt_tokens":5}"#), Usage::default());
        assert_eq!(Usage::read(br#"{"usage":[1,2]}"#), Usage::default());
    }

    #[test]
    fn later_figures_go_before_earlier_ones() {
        let first = Usage { prompt: Some(5), cached: Some(1), completion: None };
        assert_eq!(usage(7, None, 2).or(first), usage(7, Some(1), 2));
    }
}
