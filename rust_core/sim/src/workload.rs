//! What users ask, and when.
//!
//! A [`Workload`] is a list of sessions; a session is a conversation of one or more turns. It comes from a trace
//! ([`Workload::mooncake`], [`Workload::sharegpt`], [`Workload::decisions`]) or from a generator
//! ([`Workload::generate`]), and says the same to an offline replay, which wants token ids, and to a load generator,
//! which wants text: [`Piece`] gives both, and they agree to the token.

mod conversation;
mod decisions;
mod error;
mod generate;
pub mod generator;
mod line;
mod lineage;
mod mooncake;
mod sample;
mod sharegpt;
mod source;
mod words;

pub use conversation::Conversation;
pub use error::WorkloadError;
pub use generator::Generator;
pub use mooncake::TOKENS_PER_ID;
pub use sharegpt::Pace;

use crate::timing::Nanos;
use crate::token;

/// What a population of users asks, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Where it comes from: the kind of the trace or of the generator. The caller may name it better.
    pub name: String,
    /// The conversations, sorted by arrival.
    pub sessions: Vec<Session>,
    /// What was assumed or left out while it was read, one sentence each, to be shown to people.
    pub notes: Vec<String>,
}

/// One conversation. Its turns follow each other: each is asked after the reply to the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// When the first turn is asked, counted from the start of the workload.
    pub arrives: Nanos,
    /// Names the conversation, for session affinity; sessions of equal keys belong to one conversation.
    pub key: u64,
    /// What is asked, in order; at least one turn.
    pub turns: Vec<Turn>,
}

/// One request: what it adds to the conversation, and how long the reply is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// New messages; what was said before is part of the prompt all the same.
    pub messages: Vec<Message>,
    /// Tokens of the reply; at least one.
    pub output_tokens: u32,
    /// Pause after the end of the reply before; 0 for the first turn.
    pub think: Nanos,
}

/// One message of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said: the pieces one after another.
    pub pieces: Vec<Piece>,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The operator.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// Content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// Made-up words, a pure function of seed and position: pieces of equal seeds begin with the same text, those of
    /// different seeds practically never share 16 tokens. One word is one token of [`crate::token`].
    Words {
        /// Chooses the words.
        seed: u64,
        /// How many.
        tokens: u32,
    },
    /// Literal text.
    Text(Box<str>),
}

// === impl Workload ===

impl Workload {
    /// Requests over all sessions.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.sessions.iter().map(|session| session.turns.len()).sum()
    }

    /// Tokens of all prompts as they are sent: each turn repeats the conversation before it.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        self.sessions.iter().map(Session::prompt_tokens).sum()
    }

    /// Tokens of all replies.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        let turns = self.sessions.iter().flat_map(|session| &session.turns);
        turns.map(|turn| u64::from(turn.output_tokens)).sum()
    }

    /// When the last session arrives.
    #[must_use]
    pub fn span(&self) -> Nanos {
        self.sessions.last().map_or(0, |session| session.arrives)
    }

    /// Lets the users live `speed` times faster: arrivals come closer together, and pauses between turns get shorter.
    ///
    /// # Errors
    /// A speed that is not above zero.
    pub fn speed_up(&mut self, speed: f64) -> Result<(), WorkloadError> {
        if !(speed.is_finite() && speed > 0.0) {
            return Err(WorkloadError::field(
                "speed",
                format!("must be a number above 0, is {speed}"),
            ));
        }
        let faster = |time: &mut Nanos| *time = crate::timing::nanos(*time as f64 / speed);
        for session in &mut self.sessions {
            faster(&mut session.arrives);
            session.turns.iter_mut().for_each(|turn| faster(&mut turn.think));
        }
        Ok(())
    }
}

// === impl Session ===

impl Session {
    fn prompt_tokens(&self) -> u64 {
        let mut said = 0;
        let mut asked = 0;
        for turn in &self.turns {
            said += turn.token_count();
            asked += said;
            said += u64::from(turn.output_tokens);
        }
        asked
    }
}

// === impl Turn ===

impl Turn {
    /// Tokens that the turn adds to the conversation, without its reply.
    #[must_use]
    pub fn token_count(&self) -> u64 {
        self.messages.iter().flat_map(|message| &message.pieces).map(Piece::token_count).sum()
    }
}

// === impl Message ===

impl Message {
    /// A message of one piece.
    #[must_use]
    pub fn new(role: Role, piece: Piece) -> Message {
        Message { role, pieces: vec![piece] }
    }

    /// Appends the tokens of its content.
    pub fn tokens(&self, out: &mut Vec<u32>) {
        self.pieces.iter().for_each(|piece| piece.tokens(out));
    }

    /// Appends its content as text.
    pub fn text(&self, out: &mut String) {
        self.pieces.iter().for_each(|piece| piece.text(out));
    }
}

// === impl Role ===

impl Role {
    /// The role's name in OpenAI's API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

// === impl Piece ===

impl Piece {
    /// How many tokens it has.
    #[must_use]
    pub fn token_count(&self) -> u64 {
        match self {
            Piece::Words { tokens, .. } => u64::from(*tokens),
            Piece::Text(text) => token::count(text),
        }
    }

    /// Appends its tokens: those of its text.
    ///
    /// # Cost
    /// About a nanosecond per word; text costs one pass over its bytes.
    pub fn tokens(&self, out: &mut Vec<u32>) {
        match self {
            Piece::Words { seed, tokens } => words::tokens(*seed, *tokens, out),
            Piece::Text(text) => token::encode(text, out),
        }
    }

    /// Appends its text.
    pub fn text(&self, out: &mut String) {
        match self {
            Piece::Words { seed, tokens } => words::text(*seed, *tokens, out),
            Piece::Text(text) => out.push_str(text),
        }
    }
}
