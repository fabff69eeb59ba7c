//! Wakes on time, to some tens of microseconds: tokio's own timer counts in milliseconds, which is more than a gateway
//! adds to a request.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A timer of the system.
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    /// What it is set to.
    set: Option<Instant>,
}

impl Alarm {
    /// A timer that is not set.
    #[allow(
        deprecated,
        reason = "an OwnedFd stays the same descriptor, so that this is sound; what replaces it is an unsafe function"
    )]
    pub(crate) fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Alarm { timer: AsyncFd::with_interest(timer, Interest::READABLE)?, set: None })
    }

    /// Returns at `due`.
    ///
    /// # Cancel safety
    /// It may be dropped and asked again, for the same time or for another.
    ///
    /// # Errors
    /// The system refuses the timer.
    pub(crate) async fn at(&mut self, due: Instant) -> io::Result<()> {
        if self.set != Some(due) {
            let left = due.saturating_duration_since(Instant::now());
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &after(left))?;
            self.set = Some(due);
        }
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            // It would block where it was ready for an earlier setting.
            if let Ok(read) = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?)) {
                self.set = None;
                return read.map(drop);
            }
        }
    }
}

/// A setting that fires once; zero would switch the timer off.
fn after(left: Duration) -> Itimerspec {
    let left = left.max(Duration::from_nanos(1));
    let value = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_never_wakes_early_and_can_be_set_anew() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        let late = start + Duration::from_secs(3600);
        tokio::select! {
            biased;
            _ = alarm.at(late) => panic!("an hour has not passed"),
            () = tokio::task::yield_now() => {}
        }
        for ms in [2, 1, 4] {
            let due = Instant::now() + Duration::from_millis(ms);
            alarm.at(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        alarm.at(start).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
