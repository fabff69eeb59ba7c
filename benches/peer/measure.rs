//! Clocks, spreads, memory.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Wall time and the CPU time of all threads of this process.
pub struct Clock {
    wall: Instant,
    cpu: f64,
}

/// How long something took, in µs.
#[derive(Default)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

// === impl Clock ===

impl Clock {
    pub fn start() -> Clock {
        Clock { cpu: cpu_seconds(), wall: Instant::now() }
    }

    /// Seconds of wall time and of CPU.
    pub fn stop(self) -> (f64, f64) {
        (self.wall.elapsed().as_secs_f64(), cpu_seconds() - self.cpu)
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

// === impl Spread ===

impl Spread {
    pub fn of(mut taken: Vec<Duration>) -> Spread {
        taken.sort_unstable();
        let at = |per_mille: usize| {
            taken
                .get((taken.len() * per_mille / 1000).min(taken.len().saturating_sub(1)))
                .map_or(0.0, |taken| taken.as_nanos() as f64 / 1e3)
        };
        Spread { p50: at(500), p99: at(990), p999: at(999) }
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident bytes of this process; zero where the system does not tell.
pub fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
