//! The fleet: the same story each time, nothing lost, and the rules do what their names say.

use nebula_sim::EngineConfig;
use nebula_sim::fleet::{Delivery, Fleet, FleetConfig, FleetError, SIM_POLICIES, Slo};
use nebula_sim::timing::Timing;
use nebula_sim::workload::Workload;
use proptest::prelude::*;
use serde_json::{Value, json};

fn config(policy: &str, engines: u32) -> FleetConfig {
    let route = json!({
        "policy": "kv", "text_block_bytes": 64, "token_block_tokens": 16, "bytes_per_token": 4.0,
        "tree_max_bytes": 64 << 20, "route_ttl_ms": 900_000, "event_route_ttl_ms": 5_000, "cpu_credit": 0.75, "storage_credit": 0.25, "uncached_weight": 2.5, "decode_request_tokens": 24.0,
        "decode_resident_weight": 0.03, "pressure_tokens": 4000.0, "pressure_start": 0.9, "breaker_failures": 5,
        "breaker_open_ms": 5000,
    });
    FleetConfig {
        engine: EngineConfig {
            block_size: 16,
            kv_blocks: 4096,
            max_num_seqs: 32,
            max_num_batched_tokens: 2048,
            max_model_len: 32_768,
            timing: Timing {
                step_base_us: 8_000.0,
                prefill_us_per_token: 30.0,
                prefill_ns_per_pair: 1.0,
                decode_us_per_seq: 30.0,
                decode_ns_per_resident_token: 50.0,
            },
        },
        engines,
        policy: policy.to_owned(),
        route: serde_json::from_value(route).expect("settings of the router"),
        seed: 1,
        speed: 1.0,
        events: Some(Delivery { delay_ms: 5.0, loss: 0.0 }),
        slo: Slo { ttft_ms: 2_000.0, itl_ms: 100.0 },
    }
}

fn chats(sessions: u32, rate_per_s: f64) -> Workload {
    let source = json!({
        "kind": "multi_turn", "sessions": sessions, "rate_per_s": rate_per_s, "min_turns": 2, "max_turns": 5,
        "system_tokens": 400, "user_tokens": 300, "output_tokens": 60, "spread": 0.5, "think_s": 2.0,
    });
    Workload::from_source(&source, None, 3).expect("a workload")
}

fn run(config: FleetConfig, workload: Workload) -> Value {
    let mut fleet = Fleet::new(config, workload).expect("a fleet");
    let total = fleet.total();
    assert_eq!(fleet.advance(usize::MAX).expect("it runs"), total);
    serde_json::to_value(fleet.report()).expect("JSON")
}

fn column(report: &Value, name: &str) -> Vec<u64> {
    let column = report["per_request"][name].as_array().expect("a column");
    column.iter().map(|value| value.as_u64().expect("a whole number")).collect()
}

#[test]
fn every_rule_answers_every_request_in_full() {
    let wanted: Vec<u64> = {
        let mut tokens: Vec<_> = chats(60, 8.0)
            .sessions
            .iter()
            .flat_map(|session| session.turns.iter().map(|turn| u64::from(turn.output_tokens)))
            .collect();
        tokens.sort_unstable();
        tokens
    };
    for policy in SIM_POLICIES {
        let report = run(config(policy, 4), chats(60, 8.0));
        let mut output = column(&report, "output");
        output.sort_unstable();
        assert_eq!(output, wanted, "{policy}");
        let cached = column(&report, "cached");
        let prompt = column(&report, "prompt");
        assert!(cached.iter().zip(&prompt).all(|(cached, prompt)| cached < prompt), "{policy}");
        let engines = report["per_engine"].as_array().expect("engines");
        let sum = |name: &str| {
            engines.iter().map(|engine| engine[name].as_u64().expect("a number")).sum::<u64>()
        };
        assert_eq!(sum("requests"), wanted.len() as u64, "{policy}");
        assert_eq!(sum("prompt_tokens"), prompt.iter().sum::<u64>(), "{policy}");
        assert_eq!(sum("cached_tokens"), cached.iter().sum::<u64>(), "{policy}");
    }
}

#[test]
fn the_same_seed_tells_the_same_story_however_it_is_sliced() {
    for policy in ["kv", "random", "power_of_two", "dynamo"] {
        let whole = run(config(policy, 4), chats(40, 8.0));
        let mut sliced = Fleet::new(config(policy, 4), chats(40, 8.0)).expect("a fleet");
        while sliced.advance(7).expect("it runs") < sliced.total() {}
        assert_eq!(serde_json::to_value(sliced.report()).expect("JSON"), whole, "{policy}");
        let other = FleetConfig { seed: 2, ..config("random", 4) };
        assert_ne!(run(other, chats(40, 8.0))["per_request"], whole["per_request"], "{policy}");
    }
}

#[test]
fn with_events_and_room_the_router_predicts_what_is_cached_to_the_block() {
    let exact =
        FleetConfig { events: Some(Delivery { delay_ms: 0.0, loss: 0.0 }), ..config("kv", 4) };
    let report = run(exact, chats(40, 1.0));
    let (predicted, cached, prompt) =
        (column(&report, "predicted"), column(&report, "cached"), column(&report, "prompt"));
    let wrong = predicted.iter().zip(&cached).zip(&prompt);
    // A prompt that is cached to its last token has its last block computed again.
    let wrong = wrong
        .filter(|((predicted, cached), prompt)| **predicted != **cached && **predicted != **prompt);
    assert_eq!(wrong.count(), 0);
    assert!(cached.iter().sum::<u64>() > 0);
}

#[test]
fn a_chat_stays_where_its_past_is_and_round_robin_spreads_it() {
    let hit = |policy| {
        run(config(policy, 4), chats(60, 2.0))["summary"]["hit_share"].as_f64().expect("a share")
    };
    let (kv, session, spread) = (hit("kv"), hit("session"), hit("round_robin"));
    assert!(
        kv > 0.9 * session && kv > 1.2 * spread,
        "kv {kv}, session {session}, round robin {spread}"
    );
}

#[test]
fn lost_events_cost_prediction() {
    let off = |loss| {
        let delivery = Delivery { delay_ms: 5.0, loss };
        let report = run(FleetConfig { events: Some(delivery), ..config("kv", 4) }, chats(80, 2.0));
        let (predicted, cached) = (column(&report, "predicted"), column(&report, "cached"));
        predicted
            .iter()
            .zip(&cached)
            .map(|(predicted, cached)| predicted.abs_diff(*cached))
            .sum::<u64>()
    };
    assert!(off(0.5) > 2 * off(0.0), "lost {} kept {}", off(0.5), off(0.0));
}

#[test]
fn a_faster_life_waits_longer() {
    let ttft = |speed| {
        let report = run(FleetConfig { speed, ..config("least_loaded", 2) }, chats(80, 1.0));
        report["summary"]["ttft_ms"]["mean"].as_f64().expect("a time")
    };
    assert!(ttft(500.0) > 2.0 * ttft(0.5));
}

#[test]
fn what_cannot_be_simulated_is_refused_with_the_reason() {
    let refused = |config, workload| match Fleet::new(config, workload) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was taken"),
    };
    let wrong = refused(config("kvv", 4), chats(1, 1.0));
    assert!(wrong.contains("`kvv`") && wrong.contains("round_robin"), "{wrong}");
    let none = refused(config("kv", 0), chats(1, 1.0));
    assert!(none.contains("engines"), "{none}");
    let mut small = config("kv", 1);
    small.engine.max_model_len = 500;
    match Fleet::new(small, chats(3, 1.0)) {
        Err(FleetError::TooLong { tokens, most: 500, .. }) => {
            // What is named is the longest: an engine of that size is taken.
            let mut enough = config("kv", 1);
            enough.engine.max_model_len = u32::try_from(tokens).unwrap();
            assert!(Fleet::new(enough, chats(3, 1.0)).is_ok());
        }
        other => panic!("{:?}", other.err()),
    }
    let loss =
        FleetConfig { events: Some(Delivery { delay_ms: 1.0, loss: 1.5 }), ..config("kv", 1) };
    assert!(refused(loss, chats(1, 1.0)).contains("events.loss"));
    let still = FleetConfig { speed: 0.0, ..config("kv", 1) };
    assert!(refused(still, chats(1, 1.0)).contains("speed"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever the rule and the size: time passes forward for each request, and no engine did more than there was.
    #[test]
    fn a_story_makes_sense(policy in 0..SIM_POLICIES.len(), engines in 1u32..9, speed in 0.2f64..40.0) {
        let report = run(FleetConfig { speed, ..config(SIM_POLICIES[policy], engines) }, chats(25, 5.0));
        let times = |name: &str| -> Vec<f64> {
            let column = report["per_request"][name].as_array().expect("a column");
            column.iter().map(|value| value.as_f64().expect("a time")).collect()
        };
        for ((ttft, e2e), arrival) in times("ttft_ms").iter().zip(times("e2e_ms")).zip(times("arrival_ms")) {
            prop_assert!(*ttft > 0.0 && e2e >= *ttft && arrival >= 0.0);
        }
        let duration = report["summary"]["duration_s"].as_f64().expect("a time");
        for engine in report["per_engine"].as_array().expect("engines") {
            prop_assert!(engine["busy_s"].as_f64().expect("a time") <= duration * 1.000_001);
        }
    }
}
