//! Kinds of made-up workloads and their parameters. Every default lives with the caller.

use serde::{Deserialize, Serialize};

use crate::workload::WorkloadError;

/// Most of anything: what is asked for must fit into memory.
const MOST: u32 = 10_000_000;

/// A kind of made-up workload, as a document `{"kind": "multi_turn", …}`; a missing or unknown field is refused.
///
/// Sessions arrive as a Poisson process of `rate_per_s`. Lengths are lognormal around the given mean with `spread` as
/// the ratio of standard deviation to mean (0: all equal), at least 1 and at most ten times the mean. Pauses are
/// exponential.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Generator {
    /// Chats of several turns under one system prompt.
    MultiTurn(MultiTurn),
    /// Single requests that begin with one of several prompts, a few of them much more often than others.
    SharedPrefix(SharedPrefix),
    /// Agents that call tools: each result is the next turn.
    Agents(Agents),
    /// Single requests that share nothing.
    Unique(Unique),
    /// Single requests, equally many for each of several prefixes.
    PrefixRepetition(PrefixRepetition),
}

/// Chats of several turns under one system prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiTurn {
    /// How many chats.
    pub sessions: u32,
    /// Chats that begin per second, on average.
    pub rate_per_s: f64,
    /// Fewest turns of a chat; each number up to `max_turns` is as likely.
    pub min_turns: u32,
    /// Most turns of a chat.
    pub max_turns: u32,
    /// Exact length of the system prompt, equal in all chats; 0 for none.
    pub system_tokens: u32,
    /// Mean length of a user's message.
    pub user_tokens: u32,
    /// Mean length of a reply.
    pub output_tokens: u32,
    /// Mean pause of a user between a reply and the next message.
    pub think_s: f64,
    /// Of all lengths but the system prompt's.
    pub spread: f64,
}

/// Single requests that begin with one of several prompts: prompt `k` is used in proportion to `1 / k^zipf`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefix {
    /// How many requests.
    pub requests: u32,
    /// Requests per second, on average.
    pub rate_per_s: f64,
    /// How many different system prompts.
    pub prefixes: u32,
    /// Exponent of the popularity; 0 makes all prompts equally popular.
    pub zipf: f64,
    /// Mean length of a system prompt.
    pub prefix_tokens: u32,
    /// Mean length of a user's message.
    pub suffix_tokens: u32,
    /// Mean length of a reply.
    pub output_tokens: u32,
    /// Of all lengths.
    pub spread: f64,
}

/// Agents that call tools: the first turn states the task, each further one brings the result of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agents {
    /// How many tasks.
    pub tasks: u32,
    /// Tasks that begin per second, on average.
    pub rate_per_s: f64,
    /// Fewest requests for one task; each number up to `max_steps` is as likely.
    pub min_steps: u32,
    /// Most requests for one task.
    pub max_steps: u32,
    /// How many different sets of tools; each is as common.
    pub tool_sets: u32,
    /// Mean length of the system prompt that describes a set of tools.
    pub system_tokens: u32,
    /// Mean length of a task.
    pub task_tokens: u32,
    /// Mean length of what a tool gives back.
    pub tool_result_tokens: u32,
    /// Mean length of a reply.
    pub output_tokens: u32,
    /// Mean time that a tool takes.
    pub tool_s: f64,
    /// Of all lengths.
    pub spread: f64,
}

/// Single requests that share nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unique {
    /// How many requests.
    pub requests: u32,
    /// Requests per second, on average.
    pub rate_per_s: f64,
    /// Mean length of a prompt.
    pub input_tokens: u32,
    /// Mean length of a reply.
    pub output_tokens: u32,
    /// Of all lengths.
    pub spread: f64,
}

/// What `vllm bench serve --dataset-name prefix_repetition` asks: exact lengths, equally many requests for each prefix, in
/// random order. Where the prefixes do not divide the requests, some get one more (vLLM asks fewer in all).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixRepetition {
    /// How many requests.
    pub requests: u32,
    /// Requests per second, on average.
    pub rate_per_s: f64,
    /// Tokens of a prefix.
    pub prefix_len: u32,
    /// Tokens behind the prefix, different in each request; 0 for none.
    pub suffix_len: u32,
    /// How many prefixes; at most one per request.
    pub num_prefixes: u32,
    /// Tokens of a reply.
    pub output_len: u32,
}

// === impl Generator ===

impl Generator {
    /// The kind's name in a document.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Generator::MultiTurn(_) => "multi_turn",
            Generator::SharedPrefix(_) => "shared_prefix",
            Generator::Agents(_) => "agents",
            Generator::Unique(_) => "unique",
            Generator::PrefixRepetition(_) => "prefix_repetition",
        }
    }

    /// Refuses parameters that nothing can be made from.
    pub(super) fn check(&self) -> Result<(), WorkloadError> {
        match self {
            Generator::MultiTurn(it) => {
                counts(&[
                    ("sessions", it.sessions),
                    ("min_turns", it.min_turns),
                    ("max_turns", it.max_turns),
                    ("user_tokens", it.user_tokens),
                    ("output_tokens", it.output_tokens),
                ])?;
                at_most("system_tokens", it.system_tokens, MOST)?;
                at_most("min_turns", it.min_turns, it.max_turns)?;
                rate(it.rate_per_s)?;
                within("think_s", it.think_s, 1e6)?;
                spread(it.spread)
            }
            Generator::SharedPrefix(it) => {
                counts(&[
                    ("requests", it.requests),
                    ("prefixes", it.prefixes),
                    ("prefix_tokens", it.prefix_tokens),
                    ("suffix_tokens", it.suffix_tokens),
                    ("output_tokens", it.output_tokens),
                ])?;
                rate(it.rate_per_s)?;
                within("zipf", it.zipf, 10.0)?;
                spread(it.spread)
            }
            Generator::Agents(it) => {
                counts(&[
                    ("tasks", it.tasks),
                    ("min_steps", it.min_steps),
                    ("max_steps", it.max_steps),
                    ("tool_sets", it.tool_sets),
                    ("system_tokens", it.system_tokens),
                    ("task_tokens", it.task_tokens),
                    ("tool_result_tokens", it.tool_result_tokens),
                    ("output_tokens", it.output_tokens),
                ])?;
                at_most("min_steps", it.min_steps, it.max_steps)?;
                rate(it.rate_per_s)?;
                within("tool_s", it.tool_s, 1e6)?;
                spread(it.spread)
            }
            Generator::Unique(it) => {
                counts(&[
                    ("requests", it.requests),
                    ("input_tokens", it.input_tokens),
                    ("output_tokens", it.output_tokens),
                ])?;
                rate(it.rate_per_s)?;
                spread(it.spread)
            }
            Generator::PrefixRepetition(it) => {
                counts(&[
                    ("requests", it.requests),
                    ("prefix_len", it.prefix_len),
                    ("num_prefixes", it.num_prefixes),
                    ("output_len", it.output_len),
                ])?;
                at_most("suffix_len", it.suffix_len, MOST)?;
                at_most("num_prefixes", it.num_prefixes, it.requests)?;
                rate(it.rate_per_s)
            }
        }
    }
}

fn counts(fields: &[(&str, u32)]) -> Result<(), WorkloadError> {
    match fields.iter().find(|(_, value)| !(1..=MOST).contains(value)) {
        Some(&(field, value)) => {
            Err(WorkloadError::field(field, format!("must be 1 to {MOST}, is {value}")))
        }
        None => Ok(()),
    }
}

fn at_most(field: &str, value: u32, most: u32) -> Result<(), WorkloadError> {
    if value > most {
        return Err(WorkloadError::field(field, format!("must be at most {most}, is {value}")));
    }
    Ok(())
}

/// A number of events per second.
pub(super) fn rate(rate_per_s: f64) -> Result<(), WorkloadError> {
    if !(1e-6..=1e9).contains(&rate_per_s) {
        let reason = format!("must be 0.000001 to 1000000000, is {rate_per_s}");
        return Err(WorkloadError::field("rate_per_s", reason));
    }
    Ok(())
}

pub(super) fn within(field: &str, value: f64, most: f64) -> Result<(), WorkloadError> {
    if !(0.0..=most).contains(&value) {
        return Err(WorkloadError::field(field, format!("must be 0 to {most}, is {value}")));
    }
    Ok(())
}

fn spread(spread: f64) -> Result<(), WorkloadError> {
    within("spread", spread, 2.0)
}
