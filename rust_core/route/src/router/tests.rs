use super::*;
use crate::engine::{EngineSpec, Facts, ModelFact};
use crate::{KeyKind, Outcome, POLICIES, Probe, Scope, Status};

mod exact;

pub(crate) fn config(policy: &str) -> Config {
    Config {
        policy: policy.to_owned(),
        text_block_bytes: 64,
        token_block_tokens: 16,
        bytes_per_token: 4.0,
        tree_max_bytes: 1 << 20,
        route_ttl_ms: 60_000,
        event_route_ttl_ms: 5_000,
        rank_kv_tokens: None,
        cpu_credit: 0.75,
        storage_credit: 0.25,
        shadow_policy: None,
        uncached_weight: 2.5,
        decode_request_tokens: 24.0,
        decode_resident_weight: 0.03,
        pressure_tokens: 4_000.0,
        pressure_start: 0.9,
        breaker_failures: 5,
        breaker_open_ms: 5_000,
    }
}

fn spec(name: &str) -> EngineSpec {
    EngineSpec {
        name: name.to_owned(),
        url: format!("http://{name}:8000"),
        ranks: 1,
        ..EngineSpec::default()
    }
}

fn model(id: &str) -> ModelFact {
    ModelFact { id: id.to_owned(), raw: format!("{{\"id\":\"{id}\"}}"), ..ModelFact::default() }
}

fn facts(models: &[&str]) -> Facts {
    Facts { models: models.iter().map(|id| model(id)).collect(), ..Facts::default() }
}

/// A router over ready engines `e0`, `e1`, … that all serve `m`.
fn router(policy: &str, engines: usize) -> Router {
    let router = Router::new(config(policy), 42).unwrap();
    router.set_engines((0..engines).map(|n| spec(&format!("e{n}"))).collect()).unwrap();
    for engine in router.engines() {
        router.probe(&engine, Probe::Healthy, 0);
        router.learn(&engine, facts(&["m"]));
    }
    router
}

fn chain(prompt: &str) -> Chain {
    let scope = Scope { model: "m", cache_salt: None, block: 64, kind: KeyKind::Text };
    Chain::from_text(&scope, prompt.as_bytes(), 4.0)
}

fn query(chain: &Chain) -> Query<'_> {
    Query {
        model: "m",
        chain,
        other_chains: &[],
        session: None,
        rank: None,
        engine: None,
        excluded: &[],
    }
}

fn name(choice: &Choice) -> String {
    choice.engine.spec().name.clone()
}

#[test]
fn kv_sends_a_prompt_where_its_prefix_is_and_elsewhere_once_that_engine_has_more_work() {
    let router = router("kv", 4);
    let long = chain(&"x".repeat(8_000));
    let first = router.route(&query(&long), 0).unwrap();
    let home = name(&first);
    drop(first);
    let mut guards = Vec::new();
    let mut elsewhere = 0;
    for n in 0..400 {
        let choice = router.route(&query(&long), 1).unwrap();
        if n == 0 {
            assert_eq!(name(&choice), home);
            assert_eq!(choice.overlap_tokens(), 2_000);
        }
        elsewhere += usize::from(name(&choice) != home);
        guards.push(choice.guard);
    }
    assert!(elsewhere > 0, "a pile of work outweighs a cached prompt");
}

#[test]
fn kv_without_shared_prefixes_spreads_like_least_loaded() {
    let router = router("kv", 4);
    let mut counts = std::collections::HashMap::new();
    let mut guards = Vec::new();
    for n in 0..400 {
        let choice = router.route(&query(&chain(&format!("{n:04}").repeat(500))), 0).unwrap();
        *counts.entry(name(&choice)).or_insert(0) += 1;
        guards.push(choice.guard);
    }
    assert!(counts.values().all(|&n| n == 100), "{counts:?}");
}

#[test]
fn round_robin_takes_turns() {
    let router = router("round_robin", 3);
    let empty = Chain::empty(10);
    let names: Vec<_> = (0..6).map(|_| name(&router.route(&query(&empty), 0).unwrap())).collect();
    assert_eq!(names, ["e0", "e1", "e2", "e0", "e1", "e2"]);
}

#[test]
fn random_reaches_every_engine() {
    let router = router("random", 4);
    let empty = Chain::empty(10);
    let names: std::collections::HashSet<_> =
        (0..100).map(|_| name(&router.route(&query(&empty), 0).unwrap())).collect();
    assert_eq!(names.len(), 4);
}

#[test]
fn least_loaded_takes_the_engine_with_the_least_work() {
    let router = router("least_loaded", 2);
    let heavy = router.route(&query(&Chain::empty(10_000)), 0).unwrap();
    for _ in 0..5 {
        let light = router.route(&query(&Chain::empty(10)), 0).unwrap();
        assert_ne!(name(&light), name(&heavy));
    }
}

#[test]
fn power_of_two_never_takes_the_busier_of_its_two() {
    let router = router("power_of_two", 2);
    let heavy = router.route(&query(&Chain::empty(10_000)), 0).unwrap();
    for _ in 0..20 {
        assert_ne!(name(&router.route(&query(&Chain::empty(10)), 0).unwrap()), name(&heavy));
    }
}

#[test]
fn a_session_stays_and_only_sessions_of_a_lost_engine_move() {
    let router = router("session", 4);
    let empty = Chain::empty(10);
    let home = |session: &str| {
        let query = Query { session: Some(session), ..query(&empty) };
        name(&router.route(&query, 0).unwrap())
    };
    let sessions: Vec<String> = (0..200).map(|n| format!("s{n}")).collect();
    let before: Vec<_> = sessions.iter().map(|session| home(session)).collect();
    assert_eq!(before, sessions.iter().map(|session| home(session)).collect::<Vec<_>>());
    router.drain("e2", true).unwrap();
    for (session, before) in sessions.iter().zip(&before) {
        let after = home(session);
        assert!(after == *before || before == "e2", "{session} moved from {before} to {after}");
        assert_ne!(after, "e2");
    }
}

#[test]
fn every_policy_books_the_load_and_returns_it() {
    for policy in POLICIES {
        let router = router(policy, 3);
        let guards: Vec<_> =
            (0..30).map(|_| router.route(&query(&Chain::empty(100)), 0).unwrap().guard).collect();
        let running: u32 = router.engines().iter().map(|engine| engine.loads()[0].running).sum();
        assert_eq!(running, 30, "{policy}");
        drop(guards);
        assert!(
            router.engines().iter().all(|engine| engine.loads()[0] == crate::Load::default()),
            "{policy}"
        );
    }
}

#[test]
fn an_unknown_model_is_told_from_one_whose_engines_are_down() {
    let router = router("kv", 2);
    let empty = Chain::empty(1);
    let unknown = Query { model: "nope", ..query(&empty) };
    assert!(
        matches!(router.route(&unknown, 0), Err(Error::UnknownModel { known, .. }) if known == "m")
    );
    for engine in router.engines() {
        router.note(&engine, Outcome::ConnectFailed, 0);
    }
    let error = router.route(&query(&empty), 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no engine can take a request for `m` now: e0 is down, e1 is down"
    );
}

#[test]
fn an_engine_that_has_not_named_its_models_is_tried_before_the_model_is_called_unknown() {
    let router = Router::new(config("kv"), 1).unwrap();
    router.set_engines(vec![spec("new")]).unwrap();
    let empty = Chain::empty(1);
    assert_eq!(name(&router.route(&query(&empty), 0).unwrap()), "new");
    let engine = router.engines().remove(0);
    router.learn(&engine, facts(&["other"]));
    assert!(matches!(router.route(&query(&empty), 0), Err(Error::UnknownModel { .. })));
}

#[test]
fn a_down_engine_gets_one_trial_after_its_time() {
    let router = router("kv", 1);
    let empty = Chain::empty(1);
    router.note(&router.engines()[0], Outcome::ConnectFailed, 1_000);
    assert!(router.route(&query(&empty), 2_000).is_err());
    assert!(router.route(&query(&empty), 6_000).is_ok());
    assert!(router.route(&query(&empty), 6_001).is_err(), "the trial is still out");
}

#[test]
fn excluded_engines_are_not_tried_again() {
    let router = router("kv", 2);
    let empty = Chain::empty(1);
    let first = router.route(&query(&empty), 0).unwrap();
    let tried = [first.engine.id()];
    let again = Query { excluded: &tried, ..query(&empty) };
    assert_ne!(name(&router.route(&again, 0).unwrap()), name(&first));
}

#[test]
fn a_client_may_name_the_rank() {
    let router = Router::new(config("kv"), 1).unwrap();
    router.set_engines(vec![EngineSpec { ranks: 4, ..spec("dp") }]).unwrap();
    let empty = Chain::empty(1);
    for rank in [3, 0, 2] {
        let query = Query { rank: Some(rank), ..query(&empty) };
        assert_eq!(router.route(&query, 0).unwrap().rank_index, rank);
    }
    let beyond = Query { rank: Some(4), ..query(&empty) };
    assert!(matches!(router.route(&beyond, 0), Err(Error::UnknownRank { rank: 4, .. })));
}

#[test]
fn an_engine_with_one_known_rank_is_asked_for_any() {
    let router = router("kv", 1);
    let empty = Chain::empty(1);
    let query = Query { rank: Some(3), ..query(&empty) };
    assert_eq!(router.route(&query, 0).unwrap().rank_index, 0);
}

#[test]
fn engines_that_miss_probes_are_used_when_none_is_ready() {
    let router = router("kv", 2);
    let empty = Chain::empty(1);
    let engines = router.engines();
    let miss = |engine: &Engine| (0..3).for_each(|_| router.probe(engine, Probe::Unhealthy, 1));
    miss(&engines[0]);
    for _ in 0..10 {
        assert_eq!(name(&router.route(&query(&empty), 2).unwrap()), "e1");
    }
    miss(&engines[1]);
    for _ in 0..10 {
        assert!(router.route(&query(&empty), 2).is_ok());
    }
}

#[test]
fn a_replaced_fleet_keeps_what_stays_and_forgets_what_goes() {
    let router = router("kv", 2);
    let long = chain(&"y".repeat(6_400));
    let choice = router.route(&query(&long), 0).unwrap();
    let home = name(&choice);
    router.set_engines(vec![spec(&home), spec("e9")]).unwrap();
    assert_eq!(router.tree_stats().blocks, 100, "the engine that stays keeps its blocks");
    assert_eq!(router.engines()[0].loads()[0].running, 1, "and its load");
    router.set_engines(vec![spec("e9")]).unwrap();
    assert_eq!(router.tree_stats().blocks, 0);
    drop(choice);
}

#[test]
fn an_engine_whose_port_is_closed_has_lost_its_cache_and_a_slow_one_has_not() {
    let router = router("kv", 1);
    drop(router.route(&query(&chain(&"z".repeat(640))), 0).unwrap());
    let engine = router.engines().remove(0);
    for _ in 0..5 {
        router.probe(&engine, Probe::Unhealthy, 1);
    }
    assert_eq!((engine.status(), router.tree_stats().blocks), (Status::Down, 10));
    router.probe(&engine, Probe::Healthy, 2);
    router.probe(&engine, Probe::Unreachable, 3);
    assert_eq!((engine.status(), router.tree_stats().blocks), (Status::Down, 0));
}

#[test]
fn descriptions_that_cannot_work_are_refused_and_nothing_changes() {
    let router = router("kv", 1);
    let twice = router.set_engines(vec![spec("a"), spec("a")]).unwrap_err();
    assert!(twice.to_string().contains("occurs twice"));
    let url = EngineSpec { url: "h:8000".to_owned(), ..spec("b") };
    assert!(router.set_engines(vec![url]).unwrap_err().to_string().contains("http://host:8000"));
    assert_eq!(router.engines().len(), 1);
}

#[test]
fn round_robin_is_fair_where_models_take_turns_and_where_requests_are_tried_again() {
    let router = Router::new(config("round_robin"), 1).unwrap();
    router.set_engines((0..4).map(|n| spec(&format!("e{n}"))).collect()).unwrap();
    for (n, engine) in router.engines().iter().enumerate() {
        router.probe(engine, Probe::Healthy, 0);
        router.learn(engine, facts(&[["a", "b"][n / 2]]));
    }
    let empty = Chain::empty(10);
    let mut counts = std::collections::HashMap::new();
    for n in 0..40 {
        let query = Query { model: ["a", "b"][n % 2], ..query(&empty) };
        *counts.entry(name(&router.route(&query, 0).unwrap())).or_insert(0) += 1;
    }
    assert!(counts.len() == 4 && counts.values().all(|&n| n == 10), "{counts:?}");
}

#[test]
fn the_cache_of_a_dead_engine_is_forgotten_whatever_was_seen_first() {
    let router = router("kv", 1);
    drop(router.route(&query(&chain(&"z".repeat(640))), 0).unwrap());
    let engine = router.engines().remove(0);
    router.note(&engine, Outcome::DiedMidStream, 1);
    assert_eq!(router.tree_stats().blocks, 10, "a broken connection is not yet a lost cache");
    router.probe(&engine, Probe::Unreachable, 2);
    assert_eq!(router.tree_stats().blocks, 0);
}

#[test]
fn a_rested_engine_comes_back_beside_a_ready_one() {
    let router = router("round_robin", 2);
    let engine = router.engines().remove(0);
    for _ in 0..5 {
        router.note(&engine, Outcome::ServerError, 0);
    }
    router.probe(&engine, Probe::Healthy, 1);
    assert_eq!(engine.status(), Status::Down);
    router.probe(&engine, Probe::Healthy, 5_000);
    let empty = Chain::empty(1);
    let names: std::collections::HashSet<_> =
        (0..4).map(|_| name(&router.route(&query(&empty), 5_001).unwrap())).collect();
    assert_eq!(names.len(), 2);
}

#[test]
fn a_route_that_nobody_answered_is_forgotten_soon_and_an_answered_one_is_kept() {
    let mut config = config("kv");
    config.route_ttl_ms = 600_000;
    let router = Router::new(config, 1).unwrap();
    router.set_engines(vec![spec("a")]).unwrap();
    let (refused, answered) = (chain(&"r".repeat(640)), chain(&"a".repeat(640)));
    drop(router.route(&query(&refused), 0).unwrap());
    let choice = router.route(&query(&answered), 0).unwrap();
    router.keep(&choice, &answered, 10);
    router.expire(UNANSWERED_MS + 1);
    assert_eq!(router.tree_stats().blocks, 10);
}
