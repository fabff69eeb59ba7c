//! Reads a reply as it arrives, without I/O, and checks it.

use nebula_sim::timing::Nanos;
use xxhash_rust::xxh3::Xxh3;

use crate::chunk::{self, Chunk, Chunks, Parsed, Usage};
use crate::failure::{Failure, Kind};

/// Longest reply, with all that stands around its words.
const MOST_BYTES: usize = 256 * 1024 * 1024;
/// Opens the comment in which a simulated engine tells the hash of all bytes before it.
const CHECKSUM: &[u8] = b": xxh3=";

/// What a good reply is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// A stream that ends with `[DONE]`.
    pub(crate) stream: bool,
    /// So many tokens, as the reply itself counts them.
    pub(crate) tokens: Option<u32>,
    /// With a checksum.
    pub(crate) checksum: bool,
    /// Its text is needed for the next turn.
    pub(crate) text: bool,
}

/// A reply on its way.
pub(crate) struct Reply<'a> {
    chunks: &'a Chunks,
    expect: Expect,
    /// The beginning of a line whose end is not here yet, or of a whole reply.
    held: Vec<u8>,
    taken: usize,
    answer: Answer,
    finished: bool,
    done: bool,
    hash: Xxh3,
    hashed: usize,
    verified: bool,
}

/// A reply that was good.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// When the first and the last token came; none where the reply was not streamed.
    pub(crate) first: Option<Nanos>,
    pub(crate) last: Option<Nanos>,
    /// Microseconds between one event with a token and the next.
    pub(crate) gaps: Vec<u32>,
    /// Events with a token.
    pub(crate) chunks: u32,
    /// Its text, where the next turn needs it.
    pub(crate) text: String,
    pub(crate) usage: Option<Usage>,
    /// Whether its checksum was there and right.
    pub(crate) verified: bool,
}

// === impl Reply ===

impl<'a> Reply<'a> {
    pub(crate) fn new(chunks: &'a Chunks, expect: Expect) -> Reply<'a> {
        Reply {
            chunks,
            expect,
            held: Vec::new(),
            taken: 0,
            answer: Answer::default(),
            finished: false,
            done: false,
            hash: Xxh3::new(),
            hashed: 0,
            verified: false,
        }
    }

    /// Takes in bytes that came at `now`.
    ///
    /// # Errors
    /// The first thing that is wrong with the reply; it is of no use afterwards.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], now: Nanos) -> Result<(), Failure> {
        self.taken += bytes.len();
        if self.taken > MOST_BYTES {
            let reason = format!("more than {MOST_BYTES} bytes");
            return Err(Failure::new(Kind::TooLong, reason));
        }
        while self.expect.stream
            && let Some(end) = memchr::memchr(b'\n', bytes)
        {
            let (line, rest) = bytes.split_at(end + 1);
            if self.held.is_empty() {
                self.line(line, now)?;
            } else {
                let mut whole = std::mem::take(&mut self.held);
                whole.extend_from_slice(line);
                self.line(&whole, now)?;
                whole.clear();
                self.held = whole;
            }
            bytes = rest;
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// The reply, if it was good to its end.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn end(mut self) -> Result<Answer, Failure> {
        if !self.expect.stream {
            let parsed = self.chunks.parse(&self.held)?;
            self.answer.chunks = u32::from(parsed.token);
            self.take_parsed(&parsed);
        } else if !self.done {
            return Err(Failure::new(Kind::NoDone, "the stream ended without [DONE]"));
        }
        let missing = |kind, what: &str| Err(Failure::new(kind, what));
        if !self.finished {
            return missing(Kind::NoFinishReason, "nothing says why the reply ended");
        }
        if self.answer.chunks == 0 {
            return missing(Kind::Empty, "there is no token in the reply");
        }
        if self.expect.checksum && !self.verified {
            return missing(Kind::NoChecksum, "a checksum was asked for and none came");
        }
        match (self.expect.tokens, self.answer.usage) {
            (Some(_), None) => return missing(Kind::NoUsage, "the reply has no usage"),
            (Some(wanted), Some(Usage { completion_tokens: got, .. })) if got != wanted => {
                return Err(Failure::new(Kind::TokenCount, format!("{got} tokens, not {wanted}")));
            }
            _ => {}
        }
        self.answer.verified = self.verified;
        Ok(self.answer)
    }

    fn line(&mut self, line: &[u8], now: Nanos) -> Result<(), Failure> {
        if self.expect.checksum {
            if line.starts_with(CHECKSUM) {
                return self.verify(line);
            }
            self.hash.update(line);
            self.hashed += line.len();
        }
        let Some(event) = line.trim_ascii_end().strip_prefix(b"data:") else {
            // A comment, the name of an event, or the empty line behind one.
            return Ok(());
        };
        let event = event.trim_ascii_start();
        if self.done {
            return Err(Failure::new(Kind::AfterDone, "the stream went on after [DONE]"));
        }
        if event == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        match self.chunks.read(event)? {
            Chunk::Token(text) => {
                if self.expect.text {
                    chunk::unescape(text, &mut self.answer.text)?;
                }
                self.token(now);
            }
            Chunk::Parsed(parsed) => {
                if parsed.token {
                    self.token(now);
                }
                self.take_parsed(&parsed);
            }
        }
        Ok(())
    }

    /// Counts an event with a token.
    fn token(&mut self, now: Nanos) {
        let answer = &mut self.answer;
        match answer.last {
            None => answer.first = Some(now),
            Some(last) => {
                let gap = now.saturating_sub(last) / 1_000;
                answer.gaps.push(u32::try_from(gap).unwrap_or(u32::MAX));
            }
        }
        answer.last = Some(now);
        answer.chunks += 1;
    }

    fn take_parsed(&mut self, parsed: &Parsed) {
        self.finished |= parsed.finished;
        if self.expect.text {
            self.answer.text.push_str(&parsed.text);
        }
        self.answer.usage = parsed.usage.or(self.answer.usage);
    }

    /// Compares what came with what the engine says it sent.
    fn verify(&mut self, line: &[u8]) -> Result<(), Failure> {
        let told = String::from_utf8_lossy(line.trim_ascii_end());
        let own = format!(": xxh3={:016x} bytes={}", self.hash.digest(), self.hashed);
        if told != own {
            let detail = format!("the engine sent{told}, here came{own}");
            return Err(Failure::new(Kind::Checksum, detail.replace(": xxh3", " xxh3")));
        }
        self.verified = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    const EXPECT: Expect = Expect { stream: true, tokens: Some(3), checksum: false, text: true };

    fn event(json: &str) -> String {
        format!("data: {json}\n\n")
    }

    fn token(text: &str) -> String {
        event(&format!(r#"{{"choices":[{{"index":0,"text":"{text}","finish_reason":null}}]}}"#))
    }

    fn good() -> String {
        [
            token(" a"),
            token(" b"),
            event(r#"{"choices":[{"index":0,"text":" c","finish_reason":"length"}]}"#),
            event(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}"#),
            event("[DONE]"),
        ]
        .concat()
    }

    fn read(expect: Expect, parts: &[&[u8]]) -> Result<Answer, Failure> {
        let chunks = Chunks::new(Endpoint::Completions);
        let mut reply = Reply::new(&chunks, expect);
        for (part, i) in parts.iter().zip(1..) {
            reply.feed(part, i * 1_000_000)?;
        }
        reply.end()
    }

    fn kind(expect: Expect, stream: &str) -> Kind {
        read(expect, &[stream.as_bytes()]).unwrap_err().kind
    }

    #[test]
    fn each_way_to_cut_a_stream_gives_the_same_reply() {
        let stream = good();
        let whole = read(EXPECT, &[stream.as_bytes()]).unwrap();
        assert_eq!(
            (whole.text.as_str(), whole.chunks, &whole.gaps[..]),
            (" a b c", 3, &[0, 0][..])
        );
        for cut in 1..stream.len() {
            let (one, other) = stream.as_bytes().split_at(cut);
            let answer = read(EXPECT, &[one, other]).unwrap();
            assert_eq!((answer.text, answer.chunks), (whole.text.clone(), 3));
        }
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(read(EXPECT, &bytes).unwrap().text, whole.text);
        let crlf = stream.replace('\n', "\r\n");
        assert_eq!(read(EXPECT, &[crlf.as_bytes()]).unwrap(), whole);
    }

    #[test]
    fn the_time_of_a_token_is_that_of_the_bytes_that_end_its_line() {
        let tokens = [token(" a"), token(" b")].concat();
        let (one, other) = tokens.as_bytes().split_at(tokens.len() - 3);
        let rest = good()[tokens.len()..].to_owned();
        let answer = read(EXPECT, &[one, other, b": ping\n\n", rest.as_bytes()]).unwrap();
        assert_eq!((answer.first, answer.last), (Some(1_000_000), Some(4_000_000)));
        assert_eq!(answer.gaps, [1_000, 2_000]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = |part: &str| good().replace(part, "");
        assert_eq!(kind(EXPECT, &without("data: [DONE]\n\n")), Kind::NoDone);
        assert_eq!(kind(EXPECT, &good().replace("\"length\"", "null")), Kind::NoFinishReason);
        assert_eq!(kind(Expect { tokens: Some(4), ..EXPECT }, &good()), Kind::TokenCount);
        let usage = event(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}"#);
        assert_eq!(kind(EXPECT, &without(&usage)), Kind::NoUsage);
        assert!(read(Expect { tokens: None, ..EXPECT }, &[without(&usage).as_bytes()]).is_ok());
        assert_eq!(kind(Expect { checksum: true, ..EXPECT }, &good()), Kind::NoChecksum);
        assert_eq!(kind(EXPECT, &(good() + &token(" d"))), Kind::AfterDone);
        assert_eq!(kind(EXPECT, "data: {\n\n"), Kind::Malformed);
        let only_end = [
            event(r#"{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}"#),
            event("[DONE]"),
        ];
        assert_eq!(kind(Expect { tokens: None, ..EXPECT }, &only_end.concat()), Kind::Empty);
    }

    #[test]
    fn a_checksum_finds_every_lost_byte() {
        let expect = Expect { checksum: true, ..EXPECT };
        let stream = good();
        let (events, done) = stream.split_at(stream.len() - "data: [DONE]\n\n".len());
        let mut hash = Xxh3::new();
        hash.update(events.as_bytes());
        let line = format!(": xxh3={:016x} bytes={}\n\n", hash.digest(), events.len());
        let signed = [events, &line, done].concat();
        assert!(read(expect, &[signed.as_bytes()]).unwrap().verified);
        for lost in (0..events.len()).filter(|&at| signed.as_bytes()[at] != b'\n') {
            let mut bytes = signed.clone().into_bytes();
            bytes[lost] = b' ';
            let kind = read(expect, &[&bytes]).err().map(|failure| failure.kind);
            let altered = bytes != signed.as_bytes();
            assert_eq!(kind.is_some(), altered, "at {lost}: {kind:?}");
        }
    }

    #[test]
    fn a_whole_reply_is_checked_too() {
        let expect = Expect { stream: false, tokens: Some(2), checksum: false, text: true };
        let body = r#"{"choices":[{"text":" a b","finish_reason":"length"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let (one, other) = body.as_bytes().split_at(20);
        let answer = read(expect, &[one, other]).unwrap();
        assert_eq!((answer.text.as_str(), answer.first, answer.last), (" a b", None, None));
        assert_eq!(read(expect, &[one]).unwrap_err().kind, Kind::Malformed);
        let error = br#"{"error":{"message":"no"}}"#;
        assert_eq!(read(expect, &[error]).unwrap_err().kind, Kind::StreamError);
    }
}
