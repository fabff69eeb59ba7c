//! A simulated fleet in virtual time, seen from Python.

use nebula_sim::fleet::Fleet;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::error::invalid;

/// A fleet that answers a workload, as far as it was asked to.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Simulation(Mutex<Fleet>);

#[pymethods]
impl Simulation {
    #[new]
    #[pyo3(signature = (settings, trace = None))]
    fn new(py: Python<'_>, settings: &[u8], trace: Option<&[u8]>) -> PyResult<Simulation> {
        let fleet = py.detach(|| Fleet::from_json(settings, trace)).map_err(invalid)?;
        Ok(Simulation(Mutex::new(fleet)))
    }

    /// Requests in all.
    #[getter]
    fn total(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.lock().total())
    }

    /// What was assumed while the workload was read, one sentence each.
    #[getter]
    fn notes(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.0.lock().notes().to_vec())
    }

    /// Goes on until `requests` more have ended; gives how many have.
    fn advance(&self, py: Python<'_>, requests: usize) -> PyResult<usize> {
        py.detach(|| self.0.lock().advance(requests)).map_err(invalid)
    }

    /// The figures, as JSON.
    fn report(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        py.detach(|| self.0.lock().report().to_json()).map_err(invalid)
    }
}
