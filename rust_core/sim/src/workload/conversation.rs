//! The prompt of each turn of a conversation, as token ids.

use crate::workload::Turn;

/// What was said so far. The prompt of a turn is all messages and replies before it and the turn's own messages, one
/// after another, without a template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    tokens: Vec<u32>,
}

// === impl Conversation ===

impl Conversation {
    /// Nothing was said.
    #[must_use]
    pub fn new() -> Conversation {
        Conversation::default()
    }

    /// The whole prompt of the next turn.
    ///
    /// # Cost
    /// O(tokens of the turn's own messages); what was said before is kept.
    pub fn ask(&mut self, turn: &Turn) -> &[u32] {
        turn.messages.iter().for_each(|message| message.tokens(&mut self.tokens));
        &self.tokens
    }

    /// Takes in the tokens of the reply to the last turn.
    pub fn answer(&mut self, reply: &[u32]) {
        self.tokens.extend_from_slice(reply);
    }

    /// Forgets everything and keeps the memory for the next conversation.
    pub fn clear(&mut self) {
        self.tokens.clear();
    }
}
