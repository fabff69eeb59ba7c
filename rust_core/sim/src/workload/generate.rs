//! Made-up workloads: what each kind of [`Generator`] asks.

use crate::timing::Nanos;
use crate::workload::generator::{Agents, MultiTurn, PrefixRepetition, SharedPrefix, Unique};
use crate::workload::sample::{Author, Zipf, sources};
use crate::workload::{Generator, Message, Piece, Role, Session, Turn, Workload, WorkloadError};

impl Workload {
    /// A made-up workload; equal parameters and seeds give the same one, and another rate gives the same sessions at
    /// other times.
    ///
    /// # Errors
    /// Names the parameter that nothing can be made from.
    pub fn generate(generator: &Generator, seed: u64) -> Result<Workload, WorkloadError> {
        generator.check()?;
        let sessions = match generator {
            Generator::MultiTurn(it) => multi_turn(it, seed),
            Generator::SharedPrefix(it) => shared_prefix(it, seed),
            Generator::Agents(it) => agents(it, seed),
            Generator::Unique(it) => unique(it, seed),
            Generator::PrefixRepetition(it) => prefix_repetition(it, seed),
        };
        Ok(Workload { name: generator.kind().to_owned(), sessions, notes: Vec::new() })
    }
}

fn multi_turn(it: &MultiTurn, seed: u64) -> Vec<Session> {
    let (mut arrivals, mut author) = sources(seed, it.rate_per_s, it.spread);
    let system = author.words(it.system_tokens);
    let chat = |key| {
        let turns = author.between(it.min_turns, it.max_turns);
        let turns = (0..turns).map(|number| {
            let mut messages = Vec::with_capacity(2);
            if number == 0 && it.system_tokens > 0 {
                messages.push(Message::new(Role::System, system.clone()));
            }
            messages.push(Message::new(Role::User, author.about(it.user_tokens)));
            turn(&mut author, messages, it.output_tokens, (number > 0).then_some(it.think_s))
        });
        Session { arrives: arrivals.next(), key, turns: turns.collect() }
    };
    (0..u64::from(it.sessions)).map(chat).collect()
}

fn shared_prefix(it: &SharedPrefix, seed: u64) -> Vec<Session> {
    let (mut arrivals, mut author) = sources(seed, it.rate_per_s, it.spread);
    let prefixes: Vec<Piece> = (0..it.prefixes).map(|_| author.about(it.prefix_tokens)).collect();
    let popularity = Zipf::new(it.prefixes, it.zipf);
    let request = |key| {
        let prefix = prefixes[author.rank(&popularity)].clone();
        let suffix = author.about(it.suffix_tokens);
        let messages = vec![Message::new(Role::System, prefix), Message::new(Role::User, suffix)];
        single(arrivals.next(), key, turn(&mut author, messages, it.output_tokens, None))
    };
    (0..u64::from(it.requests)).map(request).collect()
}

fn agents(it: &Agents, seed: u64) -> Vec<Session> {
    let (mut arrivals, mut author) = sources(seed, it.rate_per_s, it.spread);
    let tools: Vec<Piece> = (0..it.tool_sets).map(|_| author.about(it.system_tokens)).collect();
    let task = |key| {
        let steps = author.between(it.min_steps, it.max_steps);
        let tools = &tools[author.between(0, it.tool_sets - 1) as usize];
        let turns = (0..steps).map(|number| {
            if number > 0 {
                let result = Message::new(Role::Tool, author.about(it.tool_result_tokens));
                return turn(&mut author, vec![result], it.output_tokens, Some(it.tool_s));
            }
            let system = Message::new(Role::System, tools.clone());
            let task = Message::new(Role::User, author.about(it.task_tokens));
            turn(&mut author, vec![system, task], it.output_tokens, None)
        });
        Session { arrives: arrivals.next(), key, turns: turns.collect() }
    };
    (0..u64::from(it.tasks)).map(task).collect()
}

fn unique(it: &Unique, seed: u64) -> Vec<Session> {
    let (mut arrivals, mut author) = sources(seed, it.rate_per_s, it.spread);
    let request = |key| {
        let messages = vec![Message::new(Role::User, author.about(it.input_tokens))];
        single(arrivals.next(), key, turn(&mut author, messages, it.output_tokens, None))
    };
    (0..u64::from(it.requests)).map(request).collect()
}

fn prefix_repetition(it: &PrefixRepetition, seed: u64) -> Vec<Session> {
    let (mut arrivals, mut author) = sources(seed, it.rate_per_s, 0.0);
    let prefixes: Vec<Piece> = (0..it.num_prefixes).map(|_| author.words(it.prefix_len)).collect();
    let mut order: Vec<Piece> =
        prefixes.iter().cycle().take(it.requests as usize).cloned().collect();
    author.shuffle(&mut order);
    let request = |(prefix, key)| {
        let pieces = vec![prefix, author.words(it.suffix_len)];
        let messages = vec![Message { role: Role::User, pieces }];
        single(arrivals.next(), key, Turn { messages, output_tokens: it.output_len, think: 0 })
    };
    order.into_iter().zip(0..).map(request).collect()
}

/// `pause_s` is the mean pause before the turn, if it is not the first.
fn turn(
    author: &mut Author,
    messages: Vec<Message>,
    mean_output: u32,
    pause_s: Option<f64>,
) -> Turn {
    let output_tokens = author.length(mean_output);
    Turn { messages, output_tokens, think: pause_s.map_or(0, |mean_s| author.pause(mean_s)) }
}

fn single(arrives: Nanos, key: u64, turn: Turn) -> Session {
    Session { arrives, key, turns: vec![turn] }
}
