//! What can be wrong with a reply.

use std::fmt;

/// Longest text of an example.
const EXAMPLE_BYTES: usize = 300;
/// A run of so many bytes that a message shares with a prompt is taken for the prompt.
const SHARED_BYTES: usize = 24;

/// One request that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// One line; made by [`Failure::new`], so that it is short.
    pub(crate) detail: String,
}

/// The kinds that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// No connection came about.
    Connect,
    /// The connection ended before the head of the reply.
    Reset,
    /// The reply was not over in time.
    Timeout,
    /// A status other than 200.
    Status(u16),
    /// The connection ended within the reply.
    Cut,
    /// A stream was asked for, and something else came.
    NotAStream,
    /// The server told of an error within the stream.
    StreamError,
    /// The stream ended without `[DONE]`.
    NoDone,
    /// Something came after `[DONE]`.
    AfterDone,
    /// No choice said why it ended.
    NoFinishReason,
    /// There was no token in it.
    Empty,
    /// The number of tokens is to be checked, and the reply does not tell it.
    NoUsage,
    /// Not as many tokens as were asked for.
    TokenCount,
    /// A checksum was asked for, and none came.
    NoChecksum,
    /// Bytes are missing, doubled or altered.
    Checksum,
    /// Not the JSON of the API.
    Malformed,
    /// More than is taken in.
    TooLong,
}

// === impl Failure ===

impl Failure {
    /// A failure with the first line of `detail`, cut short.
    pub(crate) fn new(kind: Kind, detail: impl AsRef<str>) -> Failure {
        let line = detail.as_ref().lines().next().unwrap_or_default();
        if line.len() <= EXAMPLE_BYTES {
            return Failure { kind, detail: line.to_owned() };
        }
        let ends = line.char_indices().map(|(at, _)| at);
        let end = ends.take_while(|&at| at <= EXAMPLE_BYTES).last().unwrap_or_default();
        Failure { kind, detail: format!("{}…", &line[..end]) }
    }

    /// The same without a word of the prompt, which some servers repeat in their messages.
    pub(crate) fn without(mut self, prompt: &[u8]) -> Failure {
        let mut runs = self.detail.as_bytes().windows(SHARED_BYTES);
        if runs.any(|run| memchr::memmem::find(prompt, run).is_some()) {
            "(the message repeats the prompt)".clone_into(&mut self.detail);
        }
        self
    }
}

// === impl Kind ===

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Status(status) => return write!(f, "status_{status}"),
            Kind::Connect => "connect",
            Kind::Reset => "reset",
            Kind::Timeout => "timeout",
            Kind::Cut => "cut",
            Kind::NotAStream => "not_a_stream",
            Kind::StreamError => "stream_error",
            Kind::NoDone => "no_done",
            Kind::AfterDone => "after_done",
            Kind::NoFinishReason => "no_finish_reason",
            Kind::Empty => "empty",
            Kind::NoUsage => "no_usage",
            Kind::TokenCount => "token_count",
            Kind::NoChecksum => "no_checksum",
            Kind::Checksum => "checksum",
            Kind::Malformed => "malformed",
            Kind::TooLong => "too_long",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_one_short_line_without_the_prompt() {
        let long = format!("{}ü\nsecond", "x".repeat(EXAMPLE_BYTES - 1));
        assert_eq!(Failure::new(Kind::Cut, long).detail, format!("{}…", "x".repeat(299)));
        let prompt = b"tell me everything about the moon";
        let failure =
            Failure::new(Kind::Status(400), "bad input: tell me everything about the moon");
        assert_eq!(failure.without(prompt).detail, "(the message repeats the prompt)");
        let failure = Failure::new(Kind::Status(404), "unknown model moon");
        assert_eq!(failure.without(prompt).detail, "unknown model moon");
    }
}
