//! Whether an engine takes traffic: a state machine over outcomes and probes. Time is passed in.
//!
//! ```text
//!              healthy probe               refused, or `breaker_failures` in a row
//!   Unknown ------------------> Ready -------------------------------------------------> Down
//!                               |   ^                                                      |
//!                  broken       |   +---- healthy probe, or a trial that succeeds ---------+
//!                  connection,  v   |
//!                  missed     Silent
//!                  probes
//! ```
//!
//! A silent engine may be dead or only busy: it gets nothing while another engine is ready, and is still better than
//! a refusal when none is. A drained engine keeps its health and takes no new request.

use serde::Serialize;

use crate::{Config, Millis};

/// Probes without an answer after which an engine is silent. One may be lost to a busy engine; two are a pattern.
const MISSED_PROBES: u32 = 2;

/// Whether an engine takes traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never heard of; tried only where no ready engine has the model.
    Unknown,
    /// Takes traffic.
    Ready,
    /// Left alone.
    Down,
    /// Finishes what it has.
    Draining,
}

/// How one request went, as far as the engine's health is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A reply that is no failure of the engine.
    Ok,
    /// No connection came about: certain.
    ConnectFailed,
    /// The connection broke before the reply began.
    Reset,
    /// The connection broke in the middle of a reply.
    DiedMidStream,
    /// No answer in time.
    Timeout,
    /// The engine refuses more work now; it is well.
    Overloaded,
    /// Another 5xx.
    ServerError,
    /// The client left; says nothing of the engine.
    ClientGone,
}

/// What one health probe found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// 200.
    Healthy,
    /// No connection came about: certain.
    Unreachable,
    /// Connected, but no 200 in time.
    Unhealthy,
}

/// One engine's health.
#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    failures: u32,
    missed: u32,
    draining: bool,
    has_process: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Unknown,
    Ready,
    /// Does not answer probes; whether it answers requests is not known.
    Silent,
    /// Left alone; from `trial_at` on one request may try.
    Down {
        trial_at: Millis,
    },
}

/// How willingly a request is sent to an engine: the best class that has a candidate is used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Standing {
    /// Takes traffic.
    Ready,
    /// Not probed yet.
    Unknown,
    /// Perhaps only busy.
    Silent,
    /// Down for long enough that one request may try.
    Trial,
    /// Takes nothing.
    Closed,
}

impl Health {
    pub(crate) fn new() -> Health {
        Health { state: State::Unknown, failures: 0, missed: 0, draining: false, has_process: true }
    }

    pub(crate) fn status(&self) -> Status {
        match self.state {
            _ if self.draining => Status::Draining,
            State::Unknown => Status::Unknown,
            State::Ready => Status::Ready,
            State::Silent | State::Down { .. } => Status::Down,
        }
    }

    pub(crate) fn standing(&self, now: Millis) -> Standing {
        match self.state {
            _ if self.draining => Standing::Closed,
            State::Ready => Standing::Ready,
            State::Unknown => Standing::Unknown,
            State::Silent => Standing::Silent,
            State::Down { trial_at } if trial_at <= now => Standing::Trial,
            State::Down { .. } => Standing::Closed,
        }
    }

    /// From when on one request may try a down engine; `None` if none ever may.
    pub(crate) fn trial_at(&self) -> Option<Millis> {
        match self.state {
            State::Down { trial_at } if !self.draining => Some(trial_at),
            _ => None,
        }
    }

    /// Whether somebody listened when last seen.
    pub(crate) fn has_process(&self) -> bool {
        self.has_process
    }

    pub(crate) fn drain(&mut self, on: bool) {
        self.draining = on;
    }

    /// A trial is about to be sent: the next one waits its turn.
    pub(crate) fn trial(&mut self, config: &Config, now: Millis) {
        if let State::Down { trial_at } = &mut self.state {
            *trial_at = now + config.breaker_open_ms;
        }
    }

    pub(crate) fn note(&mut self, outcome: Outcome, config: &Config, now: Millis) {
        match outcome {
            Outcome::Ok | Outcome::Overloaded => {
                self.failures = 0;
                self.has_process = true;
                self.state = State::Ready;
            }
            Outcome::ConnectFailed => self.gone(config, now),
            Outcome::Reset | Outcome::DiedMidStream => self.silent(),
            Outcome::Timeout | Outcome::ServerError => {
                self.failures += 1;
                if self.failures >= config.breaker_failures {
                    self.down(config, now);
                }
            }
            Outcome::ClientGone => {}
        }
    }

    pub(crate) fn probe(&mut self, probe: Probe, config: &Config, now: Millis) {
        match probe {
            Probe::Healthy => {
                self.missed = 0;
                self.has_process = true;
                // An engine whose requests fail although its probes succeed rests for its time. Then the next requests
                // try it, and one more failure is enough to rest again.
                let rests = matches!(self.state, State::Down { trial_at } if now < trial_at);
                if !(rests && self.failures >= config.breaker_failures) {
                    self.failures = self.failures.min(config.breaker_failures - 1);
                    self.state = State::Ready;
                }
            }
            Probe::Unreachable => self.gone(config, now),
            Probe::Unhealthy => {
                self.missed += 1;
                if self.missed >= MISSED_PROBES {
                    self.silent();
                }
            }
        }
    }

    fn silent(&mut self) {
        if matches!(self.state, State::Unknown | State::Ready) {
            self.state = State::Silent;
        }
    }

    /// Nobody listens any more: what was in the engine's cache is lost with it.
    fn gone(&mut self, config: &Config, now: Millis) {
        self.has_process = false;
        self.down(config, now);
    }

    fn down(&mut self, config: &Config, now: Millis) {
        if !matches!(self.state, State::Down { .. }) {
            self.state = State::Down { trial_at: now + config.breaker_open_ms };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::tests::config;

    fn ready() -> Health {
        let mut health = Health::new();
        health.probe(Probe::Healthy, &config("kv"), 0);
        health
    }

    #[test]
    fn a_refused_connection_closes_and_a_broken_one_makes_it_the_last_resort_until_a_probe() {
        let refused = (Outcome::ConnectFailed, Standing::Closed);
        let reset = (Outcome::Reset, Standing::Silent);
        let died = (Outcome::DiedMidStream, Standing::Silent);
        for (outcome, standing) in [refused, reset, died] {
            let mut health = ready();
            health.note(outcome, &config("kv"), 10);
            assert_eq!((health.status(), health.standing(10)), (Status::Down, standing));
            health.probe(Probe::Healthy, &config("kv"), 20);
            assert_eq!(health.status(), Status::Ready);
        }
    }

    #[test]
    fn one_missed_probe_is_forgiven_and_after_two_the_engine_is_the_last_resort() {
        let mut health = ready();
        health.probe(Probe::Unhealthy, &config("kv"), 1);
        assert_eq!(health.status(), Status::Ready);
        health.probe(Probe::Unhealthy, &config("kv"), 2);
        assert_eq!(health.status(), Status::Down);
        assert_eq!(health.standing(2), Standing::Silent);
        assert!(Standing::Ready < Standing::Silent && Standing::Silent < Standing::Closed);
        health.note(Outcome::Ok, &config("kv"), 3);
        assert_eq!(health.status(), Status::Ready, "a reply is as good as a probe");
    }

    #[test]
    fn failing_requests_make_an_engine_rest_although_probes_succeed_and_one_more_makes_it_rest_again()
     {
        let config = config("kv");
        let mut health = ready();
        for _ in 0..config.breaker_failures {
            health.note(Outcome::ServerError, &config, 100);
        }
        health.probe(Probe::Healthy, &config, 150);
        assert_eq!(health.standing(150), Standing::Closed);
        let later = 100 + config.breaker_open_ms;
        health.probe(Probe::Healthy, &config, later);
        assert_eq!(health.status(), Status::Ready);
        health.note(Outcome::ServerError, &config, later + 1);
        assert_eq!(health.standing(later + 1), Standing::Closed);
        health.probe(Probe::Healthy, &config, later + 1 + config.breaker_open_ms);
        health.note(Outcome::Ok, &config, later + 2 + config.breaker_open_ms);
        health.note(Outcome::ServerError, &config, later + 3 + config.breaker_open_ms);
        assert_eq!(health.status(), Status::Ready, "a success forgives what was before");
    }

    #[test]
    fn without_probes_one_trial_at_a_time_may_bring_it_back() {
        let config = config("kv");
        let mut health = ready();
        health.note(Outcome::ConnectFailed, &config, 0);
        let later = config.breaker_open_ms;
        assert_eq!(health.standing(later), Standing::Trial);
        health.trial(&config, later);
        assert_eq!(health.standing(later), Standing::Closed);
        health.note(Outcome::Ok, &config, later + 1);
        assert_eq!(health.status(), Status::Ready);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let config = config("kv");
        let mut health = ready();
        for _ in 0..3 * config.breaker_failures {
            health.note(Outcome::ServerError, &config, 1);
            health.note(Outcome::Ok, &config, 2);
        }
        assert_eq!(health.status(), Status::Ready);
    }

    #[test]
    fn a_drained_engine_is_closed_and_keeps_its_health() {
        let mut health = ready();
        health.drain(true);
        assert_eq!((health.status(), health.standing(0)), (Status::Draining, Standing::Closed));
        health.drain(false);
        assert_eq!(health.status(), Status::Ready);
    }

    #[test]
    fn an_overloaded_engine_is_well() {
        let mut health = ready();
        for _ in 0..100 {
            health.note(Outcome::Overloaded, &config("kv"), 1);
        }
        assert_eq!(health.status(), Status::Ready);
    }
}
