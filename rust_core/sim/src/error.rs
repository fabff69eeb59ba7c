//! Why an engine did not start.

/// A refusal at start; a running engine answers errors over HTTP.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field holds a value that no engine could serve with.
    #[error("sim: {field} {reason}")]
    Config {
        /// The field of `SimConfig`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("sim: cannot listen on {listen}: {cause}")]
    Listen {
        /// The address as configured.
        listen: String,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// A KV event socket cannot be opened.
    #[error("sim: cannot publish KV events on {endpoint}: {cause}")]
    Events {
        /// The endpoint as configured, for its rank.
        endpoint: String,
        /// What the socket library said.
        cause: String,
    },
}
