//! What one event of a stream says, or a whole reply.
//!
//! Nearly all events carry one token and nothing else that matters. They are told by two searches; only the others are
//! parsed as JSON.

use std::borrow::Cow;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Endpoint;
use crate::failure::{Failure, Kind};

/// Reads the events of one API.
pub(crate) struct Chunks {
    endpoint: Endpoint,
    /// Opens the text of a token.
    text: Finder<'static>,
    /// Opens what says why a reply ended.
    finish: Finder<'static>,
}

/// What an event says.
#[derive(Debug, PartialEq)]
pub(crate) enum Chunk<'a> {
    /// A token; its text as JSON from behind the opening quote on.
    Token(&'a [u8]),
    /// Anything else, and tokens that were written differently.
    Parsed(Parsed),
}

/// An event, or a whole reply, that was parsed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    /// Text of the reply; reasoning is none.
    pub(crate) text: String,
    /// Whether it carries output, be it reasoning, a tool call or a token without text.
    pub(crate) token: bool,
    /// Whether it says why the reply ended.
    pub(crate) finished: bool,
    pub(crate) usage: Option<Usage>,
}

/// What a reply cost, as the server counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: u32,
    #[serde(default)]
    pub(crate) completion_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    /// `delta` in a stream, `message` in a whole reply.
    #[serde(borrow, default, alias = "message")]
    delta: Option<Said<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default, alias = "reasoning_content")]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

// === impl Chunks ===

impl Chunks {
    pub(crate) fn new(endpoint: Endpoint) -> Chunks {
        let text: &[u8] = match endpoint {
            Endpoint::Chat => br#""content":""#,
            Endpoint::Completions => br#""text":""#,
        };
        Chunks { endpoint, text: Finder::new(text), finish: Finder::new(br#""finish_reason":"#) }
    }

    /// What `event` says.
    ///
    /// # Errors
    /// [`Kind::StreamError`] where it tells of an error, [`Kind::Malformed`] where it is not of this API.
    pub(crate) fn read<'a>(&self, event: &'a [u8]) -> Result<Chunk<'a>, Failure> {
        // A quote within a string is escaped, so that neither search finds anything inside of one.
        if let Some(at) = self.text.find(event) {
            let text = &event[at + self.text.needle().len()..];
            if text.first().is_some_and(|&byte| byte != b'"') && !self.says_why(event) {
                return Ok(Chunk::Token(text));
            }
        }
        self.parse(event).map(Chunk::Parsed)
    }

    /// What a whole reply, or an event of any kind, says.
    ///
    /// # Errors
    /// As [`Chunks::read`].
    pub(crate) fn parse(&self, json: &[u8]) -> Result<Parsed, Failure> {
        let document: Document<'_> = serde_json::from_slice(json)
            .map_err(|cause| Failure::new(Kind::Malformed, format!("no reply: {cause}")))?;
        if let Some(error) = document.error.filter(|error| error.get() != "null") {
            return Err(Failure::new(Kind::StreamError, message(error.get().as_bytes())));
        }
        let mut parsed = Parsed { usage: document.usage, ..Parsed::default() };
        for choice in document.choices.unwrap_or_default() {
            parsed.finished |= choice.finish_reason.is_some();
            match self.endpoint {
                Endpoint::Chat => parsed.take_said(choice.delta, choice.finish_reason.is_some()),
                Endpoint::Completions => {
                    let text = choice.text.unwrap_or_default();
                    // A special token has no text; the end of a reply may have none either and is no token.
                    parsed.token |= !text.is_empty() || choice.finish_reason.is_none();
                    parsed.text.push_str(&text);
                }
            }
        }
        Ok(parsed)
    }

    /// Whether an event says why the reply ended.
    fn says_why(&self, event: &[u8]) -> bool {
        let behind = self.finish.find(event).map(|at| &event[at + self.finish.needle().len()..]);
        behind.is_some_and(|value| !value.trim_ascii_start().starts_with(b"null"))
    }
}

// === impl Parsed ===

impl Parsed {
    fn take_said(&mut self, said: Option<Said<'_>>, last: bool) {
        let Some(said) = said else { return };
        let content = said.content.as_deref().unwrap_or_default();
        self.text.push_str(content);
        let some = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|text| !text.is_empty());
        let called = said.tool_calls.is_some_and(|calls| !matches!(calls.get(), "null" | "[]"));
        // The event that opens a reply names the role and has no token; a special token has no text.
        let silent = said.content.is_some() && said.role.is_none() && !last;
        self.token |= !content.is_empty() || some(&said.reasoning) || called || silent;
    }
}

// === impl Usage ===

impl Usage {
    /// Prompt tokens that were not computed again, where the server says so.
    pub(crate) fn cached_tokens(self) -> Option<u32> {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens)
    }
}

/// What the body of an error says to people: the member `message` of itself or of its `error`, else its beginning.
pub(crate) fn message(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = document.get("error").unwrap_or(&document);
    let text = error.get("message").or_else(|| document.get("detail")).unwrap_or(error);
    match text.as_str() {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(&body[..body.len().min(1024)]).trim().to_owned(),
    }
}

/// Appends a text that is given as JSON from behind its opening quote on.
///
/// # Errors
/// [`Kind::Malformed`]: it is no JSON string.
pub(crate) fn unescape(json: &[u8], out: &mut String) -> Result<(), Failure> {
    let malformed = || Failure::new(Kind::Malformed, "the text of a token is no JSON string");
    let stop = memchr::memchr2(b'"', b'\\', json).ok_or_else(malformed)?;
    if json[stop] == b'"' {
        out.push_str(std::str::from_utf8(&json[..stop]).map_err(|_| malformed())?);
        return Ok(());
    }
    let mut end = stop;
    while json.get(end).is_some_and(|&byte| byte != b'"') {
        end += 1 + usize::from(json[end] == b'\\');
    }
    let inside = json.get(..end).ok_or_else(malformed)?;
    let quoted = [b"\"", inside, b"\""].concat();
    let text: String = serde_json::from_slice(&quoted).map_err(|_| malformed())?;
    out.push_str(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(event: &str) -> Parsed {
        parsed(Endpoint::Chat, event)
    }

    /// What an event says, whichever way it is read.
    fn parsed(endpoint: Endpoint, event: &str) -> Parsed {
        let chunks = Chunks::new(endpoint);
        let slow = chunks.parse(event.as_bytes()).unwrap();
        match chunks.read(event.as_bytes()).unwrap() {
            Chunk::Parsed(parsed) => assert_eq!(parsed, slow),
            Chunk::Token(json) => {
                let mut text = String::new();
                unescape(json, &mut text).unwrap();
                assert_eq!(Parsed { text, token: true, ..Parsed::default() }, slow);
            }
        }
        slow
    }

    fn is_fast(endpoint: Endpoint, event: &str) -> bool {
        matches!(Chunks::new(endpoint).read(event.as_bytes()), Ok(Chunk::Token(_)))
    }

    #[test]
    fn a_plain_token_is_not_parsed_and_says_the_same() {
        let event = r#"{"id":"x","choices":[{"index":0,"delta":{"content":" a \"b\" \u00fc\n"},"finish_reason":null}]}"#;
        assert!(is_fast(Endpoint::Chat, event));
        assert_eq!(chat(event).text, " a \"b\" ü\n");
        let event =
            r#"{"choices":[{"index":0,"text":" fox","logprobs":null,"finish_reason":null}]}"#;
        assert!(is_fast(Endpoint::Completions, event));
        assert_eq!(parsed(Endpoint::Completions, event).text, " fox");
    }

    #[test]
    fn other_spellings_are_parsed() {
        let event =
            r#"{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}"#;
        assert!(!is_fast(Endpoint::Chat, event));
        assert!(chat(event).token);
        let event = r#"{"choices":[{"delta":{"reasoning_content":"hm"},"finish_reason":null}]}"#;
        assert_eq!(chat(event), Parsed { token: true, ..Parsed::default() });
        let event = r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]},"finish_reason":null}]}"#;
        assert!(chat(event).token);
    }

    #[test]
    fn the_opening_and_the_end_are_no_tokens() {
        let opening = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        assert_eq!(chat(opening), Parsed::default());
        let end = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}"#;
        assert_eq!(chat(end), Parsed { finished: true, ..Parsed::default() });
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(chat(end), Parsed { finished: true, ..Parsed::default() });
        let last = r#"{"choices":[{"index":0,"text":" yew","finish_reason":"length"}]}"#;
        let last = parsed(Endpoint::Completions, last);
        assert!(last.token && last.finished);
        // A token that has no text of its own.
        let special = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}"#;
        assert!(chat(special).token);
    }

    #[test]
    fn usage_is_found() {
        let event = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}}"#;
        let usage = chat(event).usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (9, 3));
        assert_eq!(usage.cached_tokens(), Some(8));
        let event = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":null}}"#;
        assert_eq!(chat(event).usage.unwrap().cached_tokens(), None);
    }

    #[test]
    fn errors_and_nonsense_are_told() {
        let read = |event: &[u8]| Chunks::new(Endpoint::Chat).read(event).unwrap_err();
        let failure = read(br#"{"error":{"message":"engine died","type":"x","code":500}}"#);
        assert_eq!((failure.kind, failure.detail.as_str()), (Kind::StreamError, "engine died"));
        assert_eq!(read(b"{\"choices\":").kind, Kind::Malformed);
        assert_eq!(read(b"\"content\":\"").kind, Kind::Malformed);
        assert!(unescape(b"no end", &mut String::new()).is_err());
        assert!(unescape(b"no end \\", &mut String::new()).is_err());
        assert!(unescape(b"bad \\x\"", &mut String::new()).is_err());
    }

    #[test]
    fn the_message_of_an_error_is_what_people_read() {
        assert_eq!(message(br#"{"error":{"message":"too long","code":400}}"#), "too long");
        assert_eq!(message(br#"{"object":"error","message":"busy"}"#), "busy");
        assert_eq!(message(br#"{"detail":"Not Found"}"#), "Not Found");
        assert_eq!(message(b"Bad Gateway\n"), "Bad Gateway");
    }
}
