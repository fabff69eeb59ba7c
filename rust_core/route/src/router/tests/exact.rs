//! Blocks of several sizes, explanations, shadows, and what predictions were worth.

use super::*;
use crate::engine::{Intake, KeySource, KeySpec};

/// Two ready engines under a policy whose shadow is `kv`.
fn shadowed(policy: &str) -> Router {
    let shadowed = Config { shadow_policy: Some("kv".to_owned()), ..config(policy) };
    let router = Router::new(shadowed, 1).unwrap();
    router.set_engines(vec![spec("e0"), spec("e1")]).unwrap();
    for engine in router.engines() {
        router.probe(&engine, Probe::Healthy, 0);
        router.learn(&engine, facts(&["m"]));
    }
    router
}

#[test]
fn an_engine_that_cuts_prompts_otherwise_is_asked_with_its_own_blocks() {
    let router = router("kv", 2);
    let keys = [16, 32].map(|block| KeySpec { source: KeySource::Local, block });
    for (engine, key) in router.engines().iter().zip(keys) {
        router.settle(engine, Intake { key, ids: false });
    }
    let served = router.served("m").unwrap();
    assert_eq!(served.keys.as_slice(), keys);
    let tokens: Vec<u32> = (0..640).collect();
    let [main, other] = keys.map(|key| {
        let scope = Scope { model: "", cache_salt: None, block: key.block, kind: KeyKind::Tokens };
        Chain::from_tokens(&scope, &tokens)
    });
    let others = [(keys[1], other.clone())];
    let query = Query { other_chains: &others, ..query(&main) };
    let excluded = [router.engines()[0].id()];
    let choice = router.route(&Query { excluded: &excluded, ..query }, 0).unwrap();
    router.keep(&choice, query.chain_for(&choice.engine), 0);
    drop(choice);
    let choice = router.route(&query, 1).unwrap();
    assert_eq!((name(&choice).as_str(), choice.overlap_tokens()), ("e1", 608));
}

#[test]
fn an_explanation_says_what_the_next_request_gets_and_books_nothing() {
    let router = router("kv", 3);
    let prompt = chain(&"x".repeat(4_000));
    let home = name(&router.route(&query(&prompt), 0).unwrap());
    let explained = serde_json::to_value(router.explain(&query(&prompt), 1).unwrap()).unwrap();
    assert_eq!(explained["choice"]["engine"], home.as_str());
    let ranks = explained["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 3);
    assert_eq!(
        (&ranks[0]["chosen"], &ranks[0]["overlap"]["gpu"], &ranks[1]["runner_up"]),
        (&true.into(), &992.into(), &true.into())
    );
    assert!(router.engines().iter().all(|engine| engine.loads() == [crate::Load::default()]));
    assert_eq!(name(&router.route(&query(&prompt), 1).unwrap()), home);
}

#[test]
fn a_shadow_is_asked_and_not_followed() {
    let router = shadowed("round_robin");
    let prompt = chain(&"x".repeat(4_000));
    let (first, second) =
        (router.route(&query(&prompt), 0).unwrap(), router.route(&query(&prompt), 0).unwrap());
    assert_ne!(name(&first), name(&second), "round robin goes on");
    let (differs, gain) = second.shadow_gain().unwrap();
    assert!(differs && gain > 1_000.0, "{gain}");
    let unknown = Config { shadow_policy: Some("vk".to_owned()), ..config("kv") };
    assert!(Router::new(unknown, 1).is_err());
}

#[test]
fn a_rank_that_does_not_deliver_loses_its_advantage_and_a_new_process_is_believed_again() {
    let router = router("kv", 2);
    let prompt = chain(&"x".repeat(8_000));
    let choice = router.route(&query(&prompt), 0).unwrap();
    let engine = Arc::clone(&choice.engine);
    drop(choice);
    for _ in 0..200 {
        engine.belief(0).unwrap().check(crate::Check { predicted: 2_000, actual: 0 }, 0);
    }
    let choice = router.route(&query(&prompt), 1).unwrap();
    assert!(choice.credit < 0.05 || name(&choice) != engine.spec().name, "{}", choice.credit);
    drop(choice);
    router.probe(&engine, Probe::Unreachable, 2);
    assert!((engine.belief(0).unwrap().credit(2) - 1.0).abs() < f32::EPSILON);
}

#[test]
fn where_events_come_in_a_route_counts_until_they_have() {
    let router = router("kv", 1);
    let engine = Arc::clone(&router.engines()[0]);
    engine.belief(0).unwrap().set_events(true);
    let scope = Scope { model: "", cache_salt: None, block: 16, kind: KeyKind::Tokens };
    let exact = Chain::from_tokens(&scope, &[7; 160]);
    let text = chain(&"x".repeat(640));
    for prompt in [&exact, &text] {
        let choice = router.route(&query(prompt), 0).unwrap();
        router.keep(&choice, prompt, 0);
    }
    router.expire(6_000);
    let overlap = |prompt| router.route(&query(prompt), 6_000).unwrap().overlap_tokens();
    assert_eq!((overlap(&exact), overlap(&text)), (0, 160), "no event tells of text");
}

#[test]
fn least_loaded_is_not_led_by_its_shadow() {
    let router = shadowed("least_loaded");
    let prompt = chain(&"x".repeat(4_000));
    let first = router.route(&query(&prompt), 0).unwrap();
    let second = router.route(&query(&prompt), 0).unwrap();
    assert_ne!(name(&first), name(&second), "the busier one is left alone, whatever it holds");
    assert!(second.shadow_gain().is_some_and(|(differs, gain)| differs && gain > 0.0));
    assert_eq!(first.engine.loads()[0].prefill_tokens, 1_000);
}
