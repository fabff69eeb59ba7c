//! Why there is no choice, or a fleet or setting is refused.

/// A refusal; the message names what was wrong and what would be right.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// No engine has ever named this model.
    #[error("the model `{model}` is served by no engine; known models: {known}")]
    UnknownModel {
        /// The name asked for.
        model: String,
        /// What is known, joined for the message.
        known: String,
    },
    /// The model is known, or might be, but no engine can take the request now.
    #[error("no engine can take a request for `{model}` now: {why}")]
    NoEngine {
        /// The name asked for.
        model: String,
        /// Which engines there are and what keeps them.
        why: String,
    },
    /// No engine of the model has this data-parallel rank.
    #[error("X-data-parallel-rank: no engine of `{model}` has rank {rank}")]
    UnknownRank {
        /// The model asked for.
        model: String,
        /// The rank asked for.
        rank: u32,
    },
    /// There is no policy of this name.
    #[error("policy `{name}` does not exist; did you mean `{nearest}`? known: {known}")]
    UnknownPolicy {
        /// The name asked for.
        name: String,
        /// The known name most like it.
        nearest: &'static str,
        /// All names, joined for the message.
        known: String,
    },
    /// An engine's description cannot be used.
    #[error("engine `{name}`: {why}")]
    BadEngine {
        /// The engine's name.
        name: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// There is no engine of this name.
    #[error("there is no engine `{name}`; engines: {known}")]
    UnknownEngine {
        /// The name asked for.
        name: String,
        /// All names, joined for the message.
        known: String,
    },
}
