//! A simulated engine, seen from Python.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use nebula_sim::serve::Server;
use parking_lot::Mutex;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::error::invalid;

/// A simulated engine that serves HTTP on a thread of its own.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Sim {
    addr: SocketAddr,
    stop: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

#[pymethods]
impl Sim {
    #[new]
    fn new(py: Python<'_>, settings: &[u8]) -> PyResult<Sim> {
        let config = serde_json::from_slice(settings)
            .map_err(|cause| invalid(format!("settings for a simulated engine: {cause}")))?;
        py.detach(|| Sim::start(config))
    }

    /// The URL under which it serves.
    #[getter]
    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops serving; open streams break off.
    fn stop(&self, py: Python<'_>) {
        if let Some((stop, thread)) = self.stop.lock().take() {
            // Both fail only if the thread ended by itself.
            let _ = stop.send(());
            let _ = py.detach(|| thread.join());
        }
    }
}

impl Sim {
    fn start(config: nebula_sim::SimConfig) -> PyResult<Sim> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let server = runtime.block_on(Server::start(config)).map_err(invalid)?;
        let addr = server.addr();
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("nebula-sim".to_owned()).spawn(move || {
                runtime.block_on(async {
                    // A dropped sender stops it as well.
                    let _ = stopped.await;
                    server.stop().await;
                });
            })?;
        Ok(Sim { addr, stop: Mutex::new(Some((stop, thread))) })
    }
}
