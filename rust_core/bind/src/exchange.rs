//! One request in flight, seen from Python.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use nebula_wire::{Exchange as WireExchange, Head, Part};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::bridge::{Bridge, Waiter};
use crate::error::to_python;

/// One request in flight. Dropping it, or `cancel`, stops the engine's work on it.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Exchange {
    id: u64,
    inner: WireExchange,
    bridge: Arc<Bridge>,
}

impl Exchange {
    pub(crate) fn new(id: u64, inner: WireExchange, bridge: Arc<Bridge>) -> Exchange {
        Exchange { id, inner, bridge }
    }
}

#[pymethods]
impl Exchange {
    /// Identifies this exchange in what `Core.drain` returns.
    #[getter]
    fn id(&self) -> u64 {
        self.id
    }

    /// The request's identity: the client's own, or the one that was made for it.
    #[getter]
    fn request_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.inner.request_id().as_bytes())
    }

    /// The next part if it is ready, else `None`: then `Core.drain` will return this exchange's id once.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let waiter = Waiter { bridge: Arc::clone(&self.bridge), exchange: self.id };
        let waker = Arc::new(waiter).into();
        match self.inner.poll_part(&mut Context::from_waker(&waker)) {
            Poll::Pending => Ok(None),
            Poll::Ready(Ok(part)) => part_to_python(py, part).map(Some),
            Poll::Ready(Err(error)) => Err(to_python(py, &error)),
        }
    }

    /// Stops the request: the engine's connection closes and no further part comes.
    fn cancel(&self) {
        self.inner.cancel();
    }
}

/// `(status | None, headers | None, body, end)`.
fn part_to_python(py: Python<'_>, part: Part) -> PyResult<Bound<'_, PyTuple>> {
    let body = joined(py, &part.body)?;
    let Some(Head { status, headers }) = part.head else {
        return (py.None(), py.None(), body, part.end).into_pyobject(py);
    };
    let pairs = headers
        .iter()
        .map(|(name, value)| (PyBytes::new(py, name.as_ref()), PyBytes::new(py, value.as_bytes())));
    let pairs = PyList::new(py, pairs.collect::<Vec<_>>())?;
    (status, pairs, body, part.end).into_pyobject(py)
}

fn joined<'py>(py: Python<'py>, chunks: &[Bytes]) -> PyResult<Bound<'py, PyBytes>> {
    if let [only] = chunks {
        return Ok(PyBytes::new(py, only));
    }
    let length = chunks.iter().map(Bytes::len).sum();
    PyBytes::new_with(py, length, |mut room| {
        for chunk in chunks {
            let (here, rest) = room.split_at_mut(chunk.len());
            here.copy_from_slice(chunk);
            room = rest;
        }
        Ok(())
    })
}
