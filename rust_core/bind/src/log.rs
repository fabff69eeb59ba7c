//! Log lines go to standard error through a bounded queue: a slow terminal never holds up a request.

use pyo3::prelude::*;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::invalid;

/// Writes what is queued when it is dropped.
#[pyclass(frozen, module = "nebula_router._core")]
struct Log {
    _writer: WorkerGuard,
}

/// Starts the log of this process: `format` is `text` or `json`, `level` one of tracing's level names.
#[pyfunction]
pub(crate) fn start_log(format: &str, level: &str) -> PyResult<impl for<'py> IntoPyObject<'py>> {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let filter = EnvFilter::try_new(level).map_err(|cause| invalid(&format!("log_level {level}: {cause}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let started = match format {
        "json" => log.json().flatten_event(true).finish().try_init(),
        _ => log.finish().try_init(),
    };
    started.map_err(|_| invalid("the log of this process was started before"))?;
    Ok(Log { _writer: guard })
}
