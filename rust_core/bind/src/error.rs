//! The one place where the core's errors become Python's.

use nebula_route::Error as RouteError;
use nebula_wire::{Error, Kind};
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{IntoPyObjectExt, create_exception};

create_exception!(nebula_router._core, NebulaError, PyException, "A request that got no reply.");

/// A `NebulaError` with `status`, `code`, `body` (OpenAI's error body) and `retry_after_s`.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let raised = NebulaError::new_err(error.message.to_string());
    let value = raised.value(py);
    let status = error.status();
    let set = || -> PyResult<()> {
        value.setattr("status", status)?;
        value.setattr("code", code(error.kind))?;
        value.setattr("body", PyBytes::new(py, &error.body(status)))?;
        value.setattr("retry_after_s", error.retry_after_s.into_py_any(py)?)
    };
    match set() {
        Ok(()) => raised,
        Err(cause) => cause,
    }
}

/// Errors of the fleet's administration: always the caller's input.
pub(crate) fn route_to_python(py: Python<'_>, error: RouteError) -> PyErr {
    match error {
        RouteError::UnknownModel { .. } | RouteError::NoEngine { .. } => {
            to_python(py, &error.into())
        }
        other => invalid(other),
    }
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(message.to_string())
}

/// The names of all kinds, for the contract test over the binary.
pub(crate) fn kinds() -> Vec<&'static str> {
    Kind::ALL.into_iter().map(code).collect()
}

fn code(kind: Kind) -> &'static str {
    match kind {
        Kind::BadRequest => "bad_request",
        Kind::UnknownModel => "unknown_model",
        Kind::Saturated => "saturated",
        Kind::BadGateway => "bad_gateway",
        Kind::NoEngine => "no_engine",
        Kind::Timeout => "timeout",
        Kind::Stopping => "stopping",
        Kind::Internal => "internal",
    }
}
