//! ASKS: plays a workload against a live server and measures what comes back.
//!
//! The clock of a request starts at the moment when it was meant to be sent, not when the generator got round to it: a
//! server that stalls is charged for everything that should have been asked meanwhile (no coordinated omission, Gil
//! Tene, "How NOT to Measure Latency"). What a request took from its real sending on is kept beside it.
//!
//! ```text
//! source      where the workload comes from
//! load        the thread, its progress, its end
//! warm        what is asked before anything counts
//! player      when to ask what: arrivals, thinking users, the cap on concurrency
//!   arrivals    the times that were meant
//!   transcript  a conversation as the JSON of a request
//!   alarm       wakes on time, to some tens of microseconds
//! ask         one request, to the end of its reply
//!   client      connections
//!   reply       reads and checks a reply as it arrives, without I/O
//!   chunk       what one event of a stream says
//!   failure     what can be wrong with a reply
//! tally       counts and histograms
//! report      all that was measured, as JSON
//! ```

mod alarm;
mod arrivals;
mod ask;
mod chunk;
mod client;
mod config;
mod error;
mod failure;
mod load;
mod player;
mod reply;
mod report;
mod source;
mod tally;
mod transcript;
mod warm;

pub use config::{Config, Endpoint, Pace};
pub use error::Error;
pub use load::{Load, Progress};
pub use report::Report;
pub use source::Source;
