//! A live benchmark, seen from Python.

use std::time::Duration;

use pyo3::prelude::*;

use crate::error::invalid;

/// A workload that is played against a server, on a thread of its own.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Load(nebula_load::Load);

#[pymethods]
impl Load {
    #[new]
    #[pyo3(signature = (settings, record = None))]
    fn new(py: Python<'_>, settings: &[u8], record: Option<&[u8]>) -> PyResult<Load> {
        let load = py.detach(|| nebula_load::Load::from_json(settings, record));
        load.map(Load).map_err(invalid)
    }

    /// Where it is: requests in all, sent, completed, failed, in flight, and seconds.
    fn progress(&self) -> (usize, u64, u64, u64, u64, f64) {
        self.0.progress().into()
    }

    /// The report as JSON, once, if it ends within so many seconds.
    fn wait(&self, py: Python<'_>, patience_s: f64) -> PyResult<Option<Vec<u8>>> {
        let report = py.detach(|| self.0.wait_json(Duration::from_secs_f64(patience_s)));
        report.map_err(invalid)
    }

    /// Ends it soon.
    fn stop(&self) {
        self.0.stop();
    }
}
