//! One whole decision, `Router::route`: candidates, overlap, price, choice, books, and the route noted in the index. And
//! two steps of it by themselves: the prices of all ranks, and the choice among them.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fastrand::Rng;
use nebula_route::{
    Chain, Config, EngineSpec, Facts, KeyKind, Load, ModelFact, Probe, Query, Router, Scope, cost,
    pick,
};

/// Conversations that the index knows, each of 64 blocks.
const CONVERSATIONS: usize = 1_024;

/// Ranks to choose from.
const FLEETS: [usize; 3] = [8, 64, 512];

fn config() -> Config {
    let config = serde_json::json!({
        "policy": "kv", "text_block_bytes": 64, "token_block_tokens": 16, "bytes_per_token": 4.0,
        "tree_max_bytes": 64 << 20, "route_ttl_ms": 3_600_000, "event_route_ttl_ms": 5_000, "cpu_credit": 0.75, "storage_credit": 0.25, "uncached_weight": 2.5, "decode_request_tokens": 24.0,
        "decode_resident_weight": 0.03, "pressure_tokens": 4000.0, "pressure_start": 0.9,
        "breaker_failures": 5, "breaker_open_ms": 5000,
    });
    serde_json::from_value(config).expect("these are all settings")
}

fn router(engines: usize) -> Router {
    let router = Router::new(config(), 1).expect("the policy exists");
    let spec = |n| EngineSpec {
        name: format!("e{n}"),
        url: format!("http://e{n}:8000"),
        ranks: 1,
        ..EngineSpec::default()
    };
    router.set_engines((0..engines).map(spec).collect()).expect("names differ");
    let model = ModelFact { id: "m".into(), ..ModelFact::default() };
    for engine in router.engines() {
        router.probe(&engine, Probe::Healthy, 0);
        router.learn(&engine, Facts { models: vec![model.clone()], ..Facts::default() });
    }
    router
}

fn chains() -> Vec<Chain> {
    let scope = Scope { model: "m", cache_salt: None, block: 64, kind: KeyKind::Text };
    let prompt =
        |n: usize| format!("{}{}", "system ".repeat(256), format!("user {n:04} ").repeat(230));
    (0..CONVERSATIONS).map(|n| Chain::from_text(&scope, prompt(n).as_bytes(), 4.0)).collect()
}

fn decisions(criterion: &mut Criterion) {
    let chains = chains();
    let mut group = criterion.benchmark_group("route");
    for engines in FLEETS {
        let router = router(engines);
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(engines), |bencher| {
            bencher.iter(|| {
                turn += 1;
                let chain = &chains[turn % CONVERSATIONS];
                let query = Query {
                    model: "m",
                    chain,
                    other_chains: &[],
                    session: None,
                    rank: None,
                    engine: None,
                    excluded: &[],
                };
                black_box(router.route(&query, turn as u64).expect("every engine is ready"))
            });
        });
    }
    group.finish();
}

fn prices(criterion: &mut Criterion) {
    let config = config();
    let mut group = criterion.benchmark_group("price");
    for ranks in FLEETS {
        let mut rng = Rng::with_seed(1);
        let loads: Vec<Load> = (0..ranks).map(|_| load(&mut rng)).collect();
        group.bench_function(BenchmarkId::from_parameter(ranks), |bencher| {
            bencher.iter(|| {
                let prices =
                    loads.iter().map(|load| cost::price(&config, load, 8_192, 4_096).total);
                black_box(prices.sum::<f32>())
            });
        });
    }
    group.finish();
}

fn picks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for ranks in FLEETS {
        let mut rng = Rng::with_seed(1);
        let prices: Vec<f32> = (0..ranks).map(|_| rng.f32() * 10_000.0).collect();
        group.bench_function(BenchmarkId::from_parameter(ranks), |bencher| {
            bencher.iter(|| pick::lowest(black_box(&prices).iter().copied(), &mut rng));
        });
    }
    group.finish();
}

fn load(rng: &mut Rng) -> Load {
    Load {
        prefill_tokens: rng.u64(..10_000),
        resident_tokens: rng.u64(..100_000),
        running: rng.u32(..64),
        kv_usage: rng.f32(),
    }
}

criterion_group!(benches, decisions, prices, picks);
criterion_main!(benches);
