//! Why nothing could be measured.

/// What was wrong before the first request counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of [`Config`](crate::Config).
    #[error("{field}: {reason}")]
    Config {
        /// Its name.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The workload asks nothing.
    #[error("the workload holds no request")]
    NoRequest,
    /// The server gave no good reply in time.
    #[error("the server is not ready after {seconds} s: {last}")]
    NotReady {
        /// How long it was tried.
        seconds: u64,
        /// What the last try came to.
        last: String,
    },
    /// The system refuses a thread, a poller or a timer.
    #[error("cannot start the load generator: {0}")]
    System(#[from] std::io::Error),
    /// There is no room for what is to be measured.
    #[error("cannot start the load generator: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// The file of requests, or what they are to be made of.
    #[error("{0}")]
    Workload(#[from] nebula_sim::workload::WorkloadError),
    /// The document that describes a run.
    #[error("settings for the load generator: {0}")]
    Document(serde_json::Error),
    /// The thread ended without a report: a defect of this crate.
    #[error("the load generator ended without a report")]
    Lost,
}

// === impl Error ===

impl Error {
    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Config { field, reason: reason.into() }
    }
}
