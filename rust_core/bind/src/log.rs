//! The log of this process, seen from Python.

use pyo3::prelude::*;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::invalid;

/// Writes what is left when it is closed.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Log(nebula_wire::log::Log);

/// Starts the log of this process: `format` is `text` or `json`, `level` one of tracing's level names.
#[pyfunction]
pub(crate) fn start_log(format: &str, level: &str) -> PyResult<Log> {
    let filter = EnvFilter::try_new(level)
        .map_err(|cause| invalid(format!("log_level {level}: {cause}")))?;
    let log = Log(nebula_wire::log::Log::start()?);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log.0.writer())
        .with_ansi(false);
    let started = match format {
        "json" => lines.json().flatten_event(true).finish().try_init(),
        _ => lines.finish().try_init(),
    };
    started.map_err(|_| invalid("the log of this process was started before"))?;
    Ok(log)
}

#[pymethods]
impl Log {
    /// Writes what is left and ends the thread.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
