//! What a load generator is told. Every default lives with the caller.

use http::{HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;

/// Fields of a request that the generator writes itself: another value would break its checks.
const OWN_FIELDS: [&str; 8] = [
    "messages",
    "prompt",
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "ignore_eos",
];

/// Everything a load generator needs to know beside the workload; a missing or unknown field is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `http://host:port`, or `https://…`, with or without a path that all endpoints share.
    pub base_url: String,
    /// Which API is asked.
    pub endpoint: Endpoint,
    /// Its path, as the server names it.
    pub path: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Header that carries the conversation's key, if one is wanted.
    pub session_header: Option<String>,
    /// The model, as the server names it.
    pub model: String,
    /// Further fields of every request.
    pub body: Map<String, Value>,
    /// Whether replies are streamed.
    pub stream: bool,
    /// Whether replies go on to their last token, so that their length is known.
    pub ignore_eos: bool,
    /// Whether the server adds a checksum to each stream, as a simulated engine does when asked to.
    pub checksum: bool,
    /// When requests are sent.
    pub pace: Pace,
    /// Most requests in flight; the others wait, and their clocks run.
    pub max_concurrency: Option<usize>,
    /// Longest that a request may take from its sending to the end of its reply.
    pub timeout_ms: u64,
    /// Longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// How long to wait for the first good reply before anything counts; 0 waits for none.
    pub ready_timeout_ms: u64,
    /// Requests sent before anything counts.
    pub warmups: usize,
    /// Percentiles of every metric, 0 to 100.
    pub percentiles: Vec<f64>,
    /// Seed of the arrivals.
    pub seed: u64,
}

/// Which of `OpenAI`'s APIs is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Messages in, a message out.
    Chat,
    /// Text in, its continuation out.
    Completions,
}

/// When sessions begin.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum Pace {
    /// When the workload says.
    Trace,
    /// All at the start.
    AtOnce,
    /// So that `per_second` requests are asked on average.
    Rate {
        /// Requests per second, over all turns.
        per_second: f64,
        /// Shape of the gaps' gamma distribution: 1 is a Poisson process, less is burstier; none is a constant gap.
        burstiness: Option<f64>,
    },
    /// Each of so many users holds one session after another, with no pause between them.
    Users {
        /// How many.
        users: usize,
    },
}

// === impl Config ===

impl Config {
    /// The configuration itself, if it can be played.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that cannot be used.
    pub fn check(self) -> Result<Config, Error> {
        self.uri()?;
        self.header_pairs()?;
        if self.model.is_empty() {
            return Err(Error::config("model", "must not be empty"));
        }
        if let Some(field) = OWN_FIELDS.into_iter().find(|&field| self.body.contains_key(field)) {
            let reason = format!("{field} is written by the generator itself and cannot be given");
            return Err(Error::config("body", reason));
        }
        if self.body.get("n").is_some_and(|n| *n != 1) {
            return Err(Error::config("body", "n must be 1: one reply per request is measured"));
        }
        if self.checksum && !self.stream {
            return Err(Error::config("checksum", "only streams carry one"));
        }
        if self.timeout_ms == 0 || self.connect_timeout_ms == 0 {
            return Err(Error::config("timeout_ms", "must be at least 1, as connect_timeout_ms"));
        }
        if self.max_concurrency == Some(0) {
            return Err(Error::config("max_concurrency", "must be at least 1"));
        }
        if let Some(wrong) = self.percentiles.iter().find(|p| !(0.0..=100.0).contains(*p)) {
            return Err(Error::config("percentiles", format!("must be 0 to 100, is {wrong}")));
        }
        self.pace.check()?;
        Ok(self)
    }

    /// Where requests go.
    pub(crate) fn uri(&self) -> Result<Uri, Error> {
        let refuse = || {
            let reason =
                "must be like http://host:port or https://host, without a password or a query";
            Error::config("base_url", reason)
        };
        let base = self.base_url.trim_end_matches('/');
        let parsed: Uri = base.parse().map_err(|_| refuse())?;
        let scheme = parsed.scheme_str().unwrap_or_default();
        let place = parsed.authority().map_or("", |authority| authority.as_str());
        let plain = !place.is_empty() && !place.contains('@') && !base.contains('?');
        if !matches!(scheme, "http" | "https") || !plain {
            return Err(refuse());
        }
        if !self.path.starts_with('/') {
            return Err(Error::config("path", "must begin with a slash"));
        }
        format!("{base}{}", self.path)
            .parse()
            .map_err(|_| Error::config("path", "is no path of a URL"))
    }

    /// The headers of every request, parsed.
    pub(crate) fn header_pairs(&self) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
        self.headers.iter().map(|(name, value)| header(name, value)).collect()
    }

    /// Requests that may be in flight at once.
    pub(crate) fn most_inflight(&self) -> usize {
        match self.pace {
            Pace::Users { users } => users.min(self.max_concurrency.unwrap_or(users)),
            _ => self.max_concurrency.unwrap_or(usize::MAX),
        }
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Error> {
    let named = HeaderName::from_bytes(name.as_bytes());
    // The value may be a secret: only the name is told.
    let (Ok(named), Ok(mut value)) = (named, HeaderValue::from_str(value)) else {
        return Err(Error::config("headers", format!("{name} is no valid header")));
    };
    value.set_sensitive(true);
    Ok((named, value))
}

// === impl Pace ===

impl Pace {
    fn check(self) -> Result<(), Error> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match self {
            Pace::Rate { per_second, .. } if !positive(per_second) => {
                Err(Error::config("pace.per_second", "must be a number above 0"))
            }
            Pace::Rate { burstiness: Some(shape), .. } if !positive(shape) => {
                Err(Error::config("pace.burstiness", "must be a number above 0"))
            }
            Pace::Users { users: 0 } => Err(Error::config("pace.users", "must be at least 1")),
            _ => Ok(()),
        }
    }
}
