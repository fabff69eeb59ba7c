//! Addresses of event sockets, read as vLLM reads them.

use crate::Error;

/// An address of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint(String);

// === impl Endpoint ===

impl Endpoint {
    /// The address of `rank`, whose first rank has `configured`: each has the next port, or a name of its own. Port 0 stays:
    /// the system chooses one for each rank.
    ///
    /// # Errors
    /// There is no address for another rank than the first, or it is none at all.
    pub(super) fn of_rank(configured: &str, rank: u32) -> Result<Endpoint, Error> {
        let wrong = |cause: &str| Error::Events {
            endpoint: configured.to_owned(),
            cause: cause.to_owned(),
        };
        let (transport, address) = configured
            .split_once("://")
            .ok_or_else(|| wrong("expected tcp://host:port, ipc://path or inproc://name"))?;
        match transport {
            "tcp" => {
                let (host, port) =
                    address.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
                let port: u16 =
                    port.parse().map_err(|_| wrong("its port is no number up to 65535"))?;
                let offset = if port == 0 { 0 } else { rank };
                let port = u32::from(port) + offset;
                if port > u32::from(u16::MAX) {
                    return Err(wrong("the port of the last rank exceeds 65535"));
                }
                Ok(Endpoint(format!("tcp://{host}:{port}")))
            }
            "inproc" if rank > 0 => Ok(Endpoint(format!("{configured}_dp{rank}"))),
            "ipc" if rank > 0 => {
                Err(wrong("ranks beyond the first need tcp or inproc: an ipc path has no next one"))
            }
            "ipc" | "inproc" => Ok(Endpoint(configured.to_owned())),
            _ => Err(wrong("its transport is none of tcp, ipc, inproc")),
        }
    }

    /// True if a PUB socket is bound to it: a stable side is bound to, a moving one connects.
    pub(super) fn binds(&self) -> bool {
        ["*", "::"].iter().any(|wildcard| self.0.contains(wildcard))
            || ["ipc://", "inproc://"].iter().any(|transport| self.0.starts_with(transport))
    }

    /// The same with the port that the system chose, if it did: `bound` is the address that the socket tells.
    pub(super) fn with_port_of(self, bound: &str) -> Endpoint {
        match (self.0.strip_suffix(":0"), bound.rsplit_once(':')) {
            (Some(host), Some((_, port))) if self.0.starts_with("tcp://") => {
                Endpoint(format!("{host}:{port}"))
            }
            _ => self,
        }
    }

    /// The address that others reach it by, with `host` in place of a wildcard.
    pub(super) fn reachable(&self, host: &str) -> String {
        self.0.replacen('*', host, 1).replacen("[::]", host, 1).replacen("0.0.0.0", host, 1)
    }

    pub(super) fn needs_ipv6(&self) -> bool {
        self.0.contains('[')
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}
