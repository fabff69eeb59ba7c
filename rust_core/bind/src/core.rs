//! The gateway's half in Rust, seen from Python.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use nebula_route::Router;
use nebula_wire::endpoint::{ENDPOINTS, Endpoint};
use nebula_wire::{FleetSpec, Request, Wire};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use serde::Deserialize;

use crate::bridge::Bridge;
use crate::error::{invalid, route_to_python, to_python};
use crate::exchange::Exchange;

/// Router and wire of one gateway.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Core {
    wire: Wire,
    bridge: Arc<Bridge>,
    next_id: AtomicU64,
}

/// The settings document: see `Settings.core_json` in Python.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    route: nebula_route::Config,
    wire: nebula_wire::Config,
    fleet: FleetSpec,
}

#[pymethods]
impl Core {
    #[new]
    fn new(py: Python<'_>, settings: &[u8]) -> PyResult<Core> {
        let Document { route, wire, fleet } = serde_json::from_slice(settings)
            .map_err(|cause| invalid(format!("settings for the core: {cause}")))?;
        let router = Router::new(route, wire.seed).map_err(|error| route_to_python(py, error))?;
        router.set_engines(fleet.engines).map_err(|error| route_to_python(py, error))?;
        let wire = Wire::start(wire, Arc::new(router), fleet.aliases)
            .map_err(|error| to_python(py, &error))?;
        Ok(Core { wire, bridge: Arc::new(Bridge::new()?), next_id: AtomicU64::new(0) })
    }

    /// Readable while `drain` has something to return.
    fn wakeup_fd(&self) -> RawFd {
        self.bridge.fd()
    }

    /// Sends a request on its way, with `engine` to that one alone.
    #[pyo3(signature = (path, query, headers, body, engine = None))]
    fn dispatch(
        &self,
        path: &str,
        query: &[u8],
        headers: &Bound<'_, PyAny>,
        body: &[u8],
        engine: Option<String>,
    ) -> PyResult<Exchange> {
        let request = Request { engine, ..request(path, query, headers, body)? };
        Ok(self.exchange(self.wire.dispatch(request)))
    }

    /// Says what would be chosen for a request, with every term, and sends nothing.
    fn explain(&self, path: &str, headers: &Bound<'_, PyAny>, body: &[u8]) -> PyResult<Exchange> {
        Ok(self.exchange(self.wire.explain(request(path, b"", headers, body)?)))
    }

    /// The ids of the exchanges whose next part can be taken.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.bridge.take())
    }

    /// The fleet from now on, as JSON: `engines` and `aliases`.
    fn set_fleet(&self, py: Python<'_>, fleet: &[u8]) -> PyResult<()> {
        let fleet: FleetSpec =
            serde_json::from_slice(fleet).map_err(|cause| invalid(format!("fleet: {cause}")))?;
        py.detach(|| self.wire.set_fleet(fleet)).map_err(|error| route_to_python(py, error))
    }

    /// Whether the engine `name` gets new requests.
    fn drain_engine(&self, py: Python<'_>, name: &str, on: bool) -> PyResult<()> {
        self.wire.router().drain(name, on).map_err(|error| route_to_python(py, error))
    }

    /// The engines with their state, load and facts, as JSON.
    fn engines<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        json_to_python(py, self.wire.engines())
    }

    /// The engines with all that is known of them, as JSON.
    fn workers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        json_to_python(py, self.wire.workers())
    }

    /// The latest decisions, the newest first, as JSON.
    fn decisions<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyBytes>> {
        json_to_python(py, self.wire.decisions(limit))
    }

    /// The union of the engines' models, as JSON: each model's own card.
    fn models<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let cards: Vec<String> =
            self.wire.router().models().into_iter().map(|model| model.raw).collect();
        PyBytes::new(py, format!("[{}]", cards.join(",")).as_bytes())
    }

    /// All metrics in Prometheus' text format.
    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        self.wire.metrics().map_err(|error| to_python(py, &error))
    }

    /// Requests that have not ended.
    fn inflight(&self) -> usize {
        self.wire.inflight()
    }

    /// Refuses new requests from now on.
    fn close(&self) {
        self.wire.close();
    }

    /// Ends every reply in flight with an error.
    fn cut(&self) {
        self.wire.cut();
    }

    /// Stops every task and waits for the thread.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.wire.stop());
    }
}

impl Core {
    fn exchange(&self, inner: nebula_wire::Exchange) -> Exchange {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Exchange::new(id, inner, Arc::clone(&self.bridge))
    }
}

fn request(path: &str, query: &[u8], headers: &Bound<'_, PyAny>, body: &[u8]) -> PyResult<Request> {
    let endpoint = Endpoint::find(path)
        .ok_or_else(|| PyValueError::new_err(format!("{path} does not reach an engine")))?;
    let query = String::from_utf8_lossy(query).into_owned();
    let headers = headers_from_python(headers)?;
    Ok(Request { endpoint, engine: None, query, headers, body: Bytes::copy_from_slice(body) })
}

fn json_to_python(
    py: Python<'_>,
    json: Result<String, nebula_wire::Error>,
) -> PyResult<Bound<'_, PyBytes>> {
    json.map(|json| PyBytes::new(py, json.as_bytes())).map_err(|error| to_python(py, &error))
}

/// The paths that `Core.dispatch` takes.
pub(crate) fn paths() -> Vec<&'static str> {
    ENDPOINTS.iter().map(|endpoint| endpoint.path).collect()
}

/// ASGI headers: an iterable of pairs of bytes. One that is no HTTP header is refused by name.
fn headers_from_python(pairs: &Bound<'_, PyAny>) -> PyResult<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(16);
    for pair in pairs.try_iter()? {
        let pair = pair?;
        let (name, value) = (pair.get_item(0)?, pair.get_item(1)?);
        let (name, value) =
            (name.cast::<PyBytes>()?.as_bytes(), value.cast::<PyBytes>()?.as_bytes());
        let parsed = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value));
        let (Ok(name), Ok(value)) = parsed else {
            let name = String::from_utf8_lossy(name);
            return Err(PyValueError::new_err(format!("header {name} is not valid")));
        };
        headers.append(name, value);
    }
    Ok(headers)
}
