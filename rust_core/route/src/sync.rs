//! The seam between the real primitives and loom's, and the cell that a snapshot is swapped in.
//!
//! `Arc` is the standard one in both worlds: a method on `self: &Arc<Self>` takes no other.

use std::sync::{Arc, PoisonError};

#[cfg(nebula_loom)]
pub(crate) use loom::sync::RwLock;
#[cfg(nebula_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(nebula_loom))]
pub(crate) use std::sync::RwLock;
#[cfg(not(nebula_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A value that is read often and replaced whole: a reader sees the old or the new one, never a mixture.
pub struct Swap<T> {
    /// Held for one clone or one store of a pointer, so a reader never waits for the making of a value.
    cell: RwLock<Arc<T>>,
}

impl<T> Swap<T> {
    /// Holds `value` until the first [`Swap::store`].
    pub fn new(value: T) -> Swap<T> {
        Swap { cell: RwLock::new(Arc::new(value)) }
    }

    /// The value of now.
    pub fn load(&self) -> Arc<T> {
        // A pointer is whole whoever panicked.
        Arc::clone(&self.cell.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the value for all readers that come after.
    pub fn store(&self, value: T) {
        *self.cell.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}
