//! One simulated engine that waits for nothing, for load tests: `cargo run --release --example sim -- 127.0.0.1:8100`.

use nebula_sim::timing::Timing;
use nebula_sim::{EngineConfig, Server, SimConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:8100".to_owned());
    let engine = EngineConfig {
        block_size: 16,
        kv_blocks: 65_536,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_model_len: 32_768,
        timing: Timing {
            step_base_us: 4000.0,
            prefill_us_per_token: 20.0,
            prefill_ns_per_pair: 1.0,
            decode_us_per_seq: 30.0,
            decode_ns_per_resident_token: 50.0,
        },
    };
    let speed = args.next().map_or(Ok(0.0), |speed| speed.parse())?;
    let config = SimConfig { speed, ..SimConfig::plain(&listen, "tiny", engine) };
    let _server = Server::start(config).await?;
    std::future::pending::<()>().await;
    Ok(())
}
