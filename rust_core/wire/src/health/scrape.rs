//! The few of an engine's metrics that routing reads: KV cache size, block size and usage. Names match exactly, as
//! `num_requests_waiting_by_reason` stands beside `num_requests_waiting`.

use std::collections::BTreeMap;

use crate::check::Counters;

/// What one answer of `/metrics` says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Tokens per KV block.
    pub(super) block_size: Option<u32>,
    /// KV blocks of one rank.
    pub(super) kv_blocks: Option<u64>,
    /// Used share of the KV cache, 0 to 1, by data-parallel rank.
    pub(super) kv_usage: Vec<(u32, f32)>,
    /// Prompt tokens looked up in the prefix cache and found there, by data-parallel rank.
    pub(super) prefix: BTreeMap<u32, Counters>,
}

impl Report {
    /// How many data-parallel ranks it tells of.
    pub(super) fn ranks(&self) -> Option<u32> {
        self.kv_usage.iter().map(|(rank, _)| rank + 1).max()
    }
}

pub(super) fn read(text: &str) -> Report {
    let mut report = Report::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels, value)) = sample(line) else {
            continue;
        };
        match name {
            "vllm:kv_cache_usage_perc" | "vllm:gpu_cache_usage_perc" => {
                if let Ok(usage) = value.parse() {
                    report.kv_usage.push((rank(labels), usage));
                }
            }
            "vllm:prefix_cache_queries_total" | "vllm:gpu_prefix_cache_queries_total" => {
                report.prefix.entry(rank(labels)).or_default().queries = count(value);
            }
            "vllm:prefix_cache_hits_total" | "vllm:gpu_prefix_cache_hits_total" => {
                report.prefix.entry(rank(labels)).or_default().hits = count(value);
            }
            "vllm:cache_config_info" => {
                report.block_size = label(labels, "block_size").and_then(|text| text.parse().ok());
                report.kv_blocks =
                    label(labels, "num_gpu_blocks").and_then(|text| text.parse().ok());
            }
            _ => {}
        }
    }
    report
}

/// The data-parallel rank, which vLLM calls engine.
fn rank(labels: &str) -> u32 {
    label(labels, "engine").and_then(|rank| rank.parse().ok()).unwrap_or(0)
}

/// A count, which Prometheus writes as a decimal number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and counts are whole"
)]
fn count(value: &str) -> u64 {
    value.parse::<f64>().unwrap_or(0.0) as u64
}

/// `name{labels} value` in its parts.
fn sample(line: &str) -> Option<(&str, &str, &str)> {
    let (series, value) = line.rsplit_once(' ')?;
    match series.split_once('{') {
        Some((name, labels)) => Some((name, labels.strip_suffix('}')?, value)),
        None => Some((series, "", value)),
    }
}

/// The value of a label. Label values of these metrics hold no quote or comma that a name could be mistaken in.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_exactly_and_ranks_are_told_apart() {
        let text = "# HELP vllm:kv_cache_usage_perc x\n\
            vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.25\n\
            vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"tiny\"} 0.5\n\
            vllm:prefix_cache_queries_total{engine=\"1\",model_name=\"tiny\"} 4096.0\n\
            vllm:prefix_cache_hits_total{engine=\"1\",model_name=\"tiny\"} 1.024e+03\n\
            vllm:kv_cache_usage_perc_total{engine=\"0\"} 9\n\
            vllm:cache_config_info{block_size=\"32\",hash_block_size=\"None\",num_gpu_blocks=\"2048\"} 1.0\n";
        let report = read(text);
        assert_eq!(report.kv_usage, [(0, 0.25), (1, 0.5)]);
        assert_eq!(report.ranks(), Some(2));
        let counters = Counters { queries: 4096, hits: 1024 };
        assert_eq!(report.prefix, BTreeMap::from([(1, counters)]));
        assert_eq!(report.block_size, Some(32));
        assert_eq!(report.kv_blocks, Some(2048));
    }
}
