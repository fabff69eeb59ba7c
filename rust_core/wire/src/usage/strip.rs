//! The usage event that the gateway asked for, taken out of a stream of events again.

use std::ops::Range;
use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use memchr::{memchr, memchr_iter, memrchr};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Usage, after_colon};

/// Longest event that is looked at, in bytes; the start of a longer one is not held for its end.
pub const LONGEST_EVENT: usize = 1024 * 1024;

const DATA: &[u8] = b"data:";
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
static REASON: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"finish_reason\""));
static FINGERPRINT: LazyLock<Finder<'static>> =
    LazyLock::new(|| Finder::new(b"\"system_fingerprint\""));
/// What the end of a line that is followed by another line's start looks like: the start of a stream is one.
const LINE_START: [u8; 2] = *b"\n\n";

/// A filter of one reply: gives its bytes as they would be, had nobody asked for usage.
///
/// The first event with no choices and the usage goes. vLLM moves `system_fingerprint` from the last choice's event
/// into it, so that goes back; to that end the event that says why the choice ends is held until the next one is here,
/// which an engine sends at once. Apart from these two, an event is held only while its end has not come. All else
/// passes byte for byte: comments, errors, broken streams, and what is no stream of events at all. An engine that
/// reports usage in every event was told so by its operator, not by us: its stream passes as it is.
///
/// # Cost
/// Three searches per event and no copy, but for events that are held.
#[derive(Debug)]
pub struct Strip {
    /// Begins where an event does.
    held: BytesMut,
    /// Where in `held` the event stands whose end has not come.
    open: usize,
    /// The stream stands inside an event whose start has been passed on.
    inside: bool,
    /// The last bytes of that start.
    before: [u8; 2],
    /// Nothing more is looked for.
    done: bool,
    usage: Option<Usage>,
}

/// What an event is to the filter.
enum Event<'a> {
    /// The one that goes, and the fingerprint in it.
    Usage(Usage, Option<&'a str>),
    /// Says why the choice ends, and has no fingerprint.
    Last,
    /// Reports usage beside a choice.
    Counted,
    Other,
}

/// The parts of an event that decide.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts<'a> {
    #[serde(borrow)]
    choices: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    system_fingerprint: Option<&'a RawValue>,
}

// === impl Strip ===

impl Strip {
    /// At the start of a reply.
    #[must_use]
    pub fn new() -> Strip {
        Strip {
            held: BytesMut::new(),
            open: 0,
            inside: false,
            before: LINE_START,
            done: false,
            usage: None,
        }
    }

    /// What the client gets once `chunk` is here; empty where all of it is held.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.done {
            return chunk;
        }
        if self.held.is_empty() {
            return self.sift(chunk);
        }
        let searched = self.held.len();
        self.held.extend_from_slice(&chunk);
        let open = &self.held[self.open..];
        if may_be_held(open) && event_end(&self.held, searched, LINE_START).is_none() {
            return Bytes::new();
        }
        let held = self.held.split().freeze();
        self.sift(held)
    }

    /// What is still held when the engine sends no more, whole or broken.
    pub fn finish(&mut self) -> Bytes {
        self.done = true;
        self.held.split().freeze()
    }

    /// What was taken out.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Takes bytes from where the stream stands, and holds what may not go yet.
    fn sift(&mut self, bytes: Bytes) -> Bytes {
        let mut at = 0;
        if self.inside {
            let Some(end) = event_end(&bytes, 0, self.before) else {
                self.before = last_two(self.before, &bytes);
                return bytes;
            };
            self.inside = false;
            at = end;
        }
        let mut last = None;
        while let Some(end) = event_end(&bytes, at, LINE_START) {
            match Event::of(&bytes[at..end]) {
                Event::Usage(usage, fingerprint) => {
                    self.usage = Some(usage);
                    self.done = true;
                    let place = last.and_then(|start| object_end(&bytes[start..at], start));
                    return without(&bytes, at..end, fingerprint.zip(place));
                }
                Event::Counted => {
                    self.done = true;
                    return bytes;
                }
                Event::Last => last = Some(at),
                Event::Other => last = None,
            }
            at = end;
        }
        self.hold(bytes, at, last)
    }

    /// Passes on what stands before the open event at `open`, and before the `last` one of a choice.
    fn hold(&mut self, bytes: Bytes, open: usize, last: Option<usize>) -> Bytes {
        if !may_be_held(&bytes[open..]) {
            self.inside = true;
            self.before = last_two(LINE_START, &bytes[open..]);
            return bytes;
        }
        let from = last.unwrap_or(open);
        self.held.extend_from_slice(&bytes[from..]);
        self.open = open - from;
        bytes.slice(..from)
    }
}

impl Default for Strip {
    fn default() -> Strip {
        Strip::new()
    }
}

// === impl Event ===

impl Event<'_> {
    fn of(event: &[u8]) -> Event<'_> {
        if event.len() > LONGEST_EVENT {
            return Event::Other;
        }
        // An event of several lines is none of an engine's: it passes as it is.
        let line = event.trim_ascii_end();
        let Some(json) = line.strip_prefix(DATA).filter(|_| memchr(b'\n', line).is_none()) else {
            return Event::Other;
        };
        if has(json, &USAGE, b'{')
            && let Some(event) = Event::with_usage(json)
        {
            return event;
        }
        let last =
            has(json, &REASON, b'"') && !has(json, &FINGERPRINT, b'"') && json.ends_with(b"}");
        if last { Event::Last } else { Event::Other }
    }

    fn with_usage(json: &[u8]) -> Option<Event<'_>> {
        let parts = serde_json::from_slice::<Parts<'_>>(json).ok()?;
        let usage = parts.usage.filter(|raw| raw.get().starts_with('{'))?;
        if !parts.choices?.is_empty() {
            return Some(Event::Counted);
        }
        let fingerprint = parts.system_fingerprint.map(RawValue::get);
        Some(Event::Usage(Usage::of(usage.get().as_bytes()).unwrap_or_default(), fingerprint))
    }
}

/// Whether a value of `key`, sought in its quotes, starts with `first`. Text that only looks like a key is escaped
/// inside its JSON string and so cannot match.
fn has(json: &[u8], key: &Finder<'_>, first: u8) -> bool {
    key.find_iter(json).any(|at| {
        let value = after_colon(&json[at + key.needle().len()..]);
        value.is_some_and(|value| value.first() == Some(&first))
    })
}

/// Where the first event ends that has its end from `from` on: behind an empty line, however lines end. `before` are
/// the two bytes before the first.
fn event_end(bytes: &[u8], from: usize, before: [u8; 2]) -> Option<usize> {
    let back = |at: usize, n: usize| if at >= n { bytes[at - n] } else { before[at + 2 - n] };
    memchr_iter(b'\n', &bytes[from..])
        .map(|at| from + at)
        .find(|&at| {
            let byte = back(at, 1);
            byte == b'\n' || (byte == b'\r' && back(at, 2) == b'\n')
        })
        .map(|at| at + 1)
}

/// Whether the start of an event is held for its end.
fn may_be_held(open: &[u8]) -> bool {
    open.len() <= LONGEST_EVENT && (open.starts_with(DATA) || DATA.starts_with(open))
}

fn last_two(before: [u8; 2], bytes: &[u8]) -> [u8; 2] {
    match *bytes {
        [.., one, two] => [one, two],
        [one] => [before[1], one],
        [] => before,
    }
}

/// Where the object in `event` closes, counted from `start` bytes before it.
fn object_end(event: &[u8], start: usize) -> Option<usize> {
    memrchr(b'}', event).map(|at| start + at)
}

/// `bytes` without the event at `event`, and with the fingerprint at its place.
fn without(bytes: &[u8], event: Range<usize>, fingerprint: Option<(&str, usize)>) -> Bytes {
    let mut out = Vec::with_capacity(bytes.len());
    let mut from = 0;
    if let Some((fingerprint, place)) = fingerprint {
        out.extend_from_slice(&bytes[..place]);
        out.extend_from_slice(b",\"system_fingerprint\":");
        out.extend_from_slice(fingerprint.as_bytes());
        from = place;
    }
    out.extend_from_slice(&bytes[from..event.start]);
    out.extend_from_slice(&bytes[event.end..]);
    out.into()
}

#[cfg(test)]
mod tests;
