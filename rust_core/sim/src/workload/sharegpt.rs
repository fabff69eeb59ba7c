//! Recorded chats as lists of messages, in the manner of `ShareGPT`.

use serde::{Deserialize, Serialize};

use crate::token;
use crate::workload::generator::{rate, within};
use crate::workload::sample::{Arrivals, Author, sources};
use crate::workload::{Message, Piece, Role, Session, Turn, Workload, WorkloadError, line};

/// When recorded chats are asked: they hold no times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// Chats that begin per second, on average, as a Poisson process.
    pub rate_per_s: f64,
    /// Mean pause between a reply and the user's next message; pauses are exponential.
    pub think_s: f64,
    /// Equal seeds give equal times.
    pub seed: u64,
}

/// One recorded chat. Further fields (`id`, …) are passed over.
#[derive(Deserialize)]
struct Chat {
    #[serde(alias = "messages")]
    conversations: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(rename = "from", alias = "role")]
    by: By,
    /// OpenAI's messages that only call tools hold `null`; without the field, serde would take it for that.
    #[serde(rename = "value", alias = "content", deserialize_with = "Option::deserialize")]
    text: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct By(Role);

impl Workload {
    /// The chats of a JSON list, or of a file with one JSON object per line, in their order:
    /// `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}` or
    /// `{"messages": [{"role": "user", "content": "…"}, …]}`.
    ///
    /// Each question (of a user or a tool) that has a reply is a turn. The reply's text only tells the length, counted
    /// by [`token::encode`]: what the engine says takes its place. A message that opens with neither space nor line feed
    /// gets a line feed in front, so that the tokens of a prompt are those of its messages. Chats without an answered
    /// question are left out.
    ///
    /// # Errors
    /// Names the place that is not as it must be; a file without an answered question; a pace that nobody could keep.
    pub fn sharegpt(text: &[u8], pace: &Pace) -> Result<Workload, WorkloadError> {
        rate(pace.rate_per_s)?;
        within("think_s", pace.think_s, 1e6)?;
        let chats = read(text)?;
        let total = chats.len();
        let (mut arrivals, mut author) = sources(pace.seed, pace.rate_per_s, 0.0);
        let chats = chats.into_iter().map(|chat| chat.turns(&mut author, pace.think_s));
        let chats = chats.filter(|turns| !turns.is_empty());
        let sessions: Vec<Session> =
            chats.zip(0..).map(|(turns, key)| session(&mut arrivals, turns, key)).collect();
        if sessions.is_empty() {
            let reason = "no chat holds a question and a reply to it".to_owned();
            return Err(WorkloadError::Whole(reason));
        }
        let silent = total - sessions.len();
        let notes = (silent > 0)
            .then(|| format!("{silent} chats without an answered question are left out"));
        let notes = notes.into_iter().collect();
        Ok(Workload { name: "sharegpt".to_owned(), sessions, notes })
    }
}

fn session(arrivals: &mut Arrivals, turns: Vec<Turn>, key: u64) -> Session {
    Session { arrives: arrivals.next(), key, turns }
}

fn read(text: &[u8]) -> Result<Vec<Chat>, WorkloadError> {
    if text.trim_ascii_start().starts_with(b"{") {
        return line::lines(text).map(|(number, line)| line::parse(number, line)).collect();
    }
    let cause = match serde_json::from_slice(text) {
        Ok(chats) => return Ok(chats),
        Err(cause) => cause,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    Err(match serde_path_to_error::deserialize::<_, Vec<Chat>>(&mut deserializer) {
        Err(error) if error.inner().is_data() => {
            WorkloadError::field(error.path().to_string(), cause.to_string())
        }
        _ => WorkloadError::Whole(format!("the file is not valid JSON: {cause}")),
    })
}

// === impl Chat ===

impl Chat {
    fn turns(self, author: &mut Author, think_s: f64) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut messages: Vec<Message> = Vec::new();
        for said in self.conversations {
            let text = said.text.unwrap_or_default();
            let asked = messages.iter().any(|it| matches!(it.role, Role::User | Role::Tool));
            if said.by.0 == Role::Assistant && asked {
                let tokens = u32::try_from(token::count(&text)).unwrap_or(u32::MAX);
                let think = if turns.is_empty() { 0 } else { author.pause(think_s) };
                let messages = std::mem::take(&mut messages);
                turns.push(Turn { messages, output_tokens: tokens.max(1), think });
            } else if !text.is_empty() {
                messages.push(Message::new(said.by.0, Piece::Text(apart(text))));
            }
        }
        turns
    }
}

/// The text as it stands behind another one without changing how that is cut into tokens.
fn apart(text: String) -> Box<str> {
    if text.starts_with([' ', '\n']) {
        return text.into_boxed_str();
    }
    format!("\n{text}").into_boxed_str()
}

// === impl By ===

impl TryFrom<String> for By {
    type Error = String;

    /// The names that `ShareGPT`'s dumps and OpenAI's messages use.
    fn try_from(name: String) -> Result<By, String> {
        match name.as_str() {
            "system" | "developer" => Ok(By(Role::System)),
            "human" | "user" => Ok(By(Role::User)),
            "gpt" | "assistant" | "chatgpt" | "bard" | "bing" => Ok(By(Role::Assistant)),
            "tool" | "function" => Ok(By(Role::Tool)),
            _ => Err(format!("must be human, gpt, system, tool, user or assistant, is {name:?}")),
        }
    }
}
