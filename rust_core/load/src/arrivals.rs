//! When sessions are meant to begin.

use std::convert::Infallible;

use nebula_sim::timing::Nanos;
use nebula_sim::workload::Workload;
use rand_core::TryRng;
use rand_distr::{Distribution, Gamma};

use crate::config::Pace;

const NANOS_PER_SECOND: f64 = 1e9;

/// The beginning of each session, in their order, from the start of the run; none where users decide.
pub(crate) fn arrivals(workload: &Workload, pace: Pace, seed: u64) -> Option<Vec<Nanos>> {
    let sessions = &workload.sessions;
    match pace {
        Pace::Users { .. } => None,
        Pace::AtOnce => Some(vec![0; sessions.len()]),
        Pace::Trace => Some(sessions.iter().map(|session| session.arrives).collect()),
        Pace::Rate { per_second, burstiness } => {
            let seconds = workload.requests() as f64 / per_second;
            let gaps = gaps(sessions.len(), burstiness, seed);
            Some(spread(&gaps, seconds))
        }
    }
}

/// Gaps of the mean 1. As in `vllm bench serve` they follow a gamma distribution of shape `burstiness`.
fn gaps(count: usize, burstiness: Option<f64>, seed: u64) -> Vec<f64> {
    let gamma = burstiness.and_then(|shape| Gamma::new(shape, 1.0 / shape).ok());
    let Some(gamma) = gamma else {
        // A shape without bound: all gaps are the mean.
        return vec![1.0; count];
    };
    let mut source = Source(fastrand::Rng::with_seed(seed));
    (0..count).map(|_| gamma.sample(&mut source)).collect()
}

/// The sum of the gaps up to each, stretched so that the last arrival falls on `seconds`: as in `vllm bench serve`, so
/// that two seeds offer the same rate.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and no time is negative"
)]
fn spread(gaps: &[f64], seconds: f64) -> Vec<Nanos> {
    let total: f64 = gaps.iter().sum();
    let scale = if total > 0.0 { seconds / total * NANOS_PER_SECOND } else { 0.0 };
    let mut passed = 0.0;
    let after = |gap: &f64| {
        passed += gap;
        (passed * scale).round() as Nanos
    };
    gaps.iter().map(after).collect()
}

/// The workspace's generator of random numbers, as the distributions want it.
struct Source(fastrand::Rng);

impl TryRng for Source {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nebula_sim::workload::{Message, Piece, Role, Session, Turn};

    use super::*;

    fn workload(sessions: usize, turns: usize) -> Workload {
        let message = Message::new(Role::User, Piece::Words { seed: 1, tokens: 4 });
        let turn = Turn { messages: vec![message], output_tokens: 1, think: 0 };
        let session = |key| Session { arrives: key * 7, key, turns: vec![turn.clone(); turns] };
        let sessions = (0..sessions as u64).map(session).collect();
        Workload { name: "test".to_owned(), sessions, notes: Vec::new() }
    }

    fn rate(per_second: f64, burstiness: Option<f64>) -> Pace {
        Pace::Rate { per_second, burstiness }
    }

    /// The standard deviation of the gaps in multiples of their mean.
    fn variation(times: &[Nanos]) -> f64 {
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        square.sqrt() / mean
    }

    #[test]
    fn a_rate_is_kept_to_the_last_request() {
        for seed in 0..4 {
            let times = arrivals(&workload(1_000, 2), rate(50.0, Some(1.0)), seed).unwrap();
            assert_eq!(times.last(), Some(&40_000_000_000));
            assert!(times.is_sorted());
        }
    }

    #[test]
    fn burstiness_is_the_shape_of_the_gaps() {
        let times = |burstiness| arrivals(&workload(20_000, 1), rate(10.0, burstiness), 3).unwrap();
        assert!((variation(&times(Some(1.0))) - 1.0).abs() < 0.05);
        assert!((variation(&times(Some(0.25))) - 2.0).abs() < 0.2);
        assert!((variation(&times(Some(4.0))) - 0.5).abs() < 0.05);
        assert!(variation(&times(None)) < 1e-6);
        assert_eq!(times(None)[..2], [100_000_000, 200_000_000]);
    }

    #[test]
    fn the_other_paces_are_what_they_say() {
        let workload = workload(3, 1);
        assert_eq!(arrivals(&workload, Pace::Trace, 0).unwrap(), [0, 7, 14]);
        assert_eq!(arrivals(&workload, Pace::AtOnce, 0).unwrap(), [0, 0, 0]);
        assert_eq!(arrivals(&workload, Pace::Users { users: 2 }, 0), None);
    }

    #[test]
    fn equal_seeds_give_equal_times() {
        let times = |seed| arrivals(&workload(50, 1), rate(1.0, Some(1.0)), seed);
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }
}
