//! The seam between the real primitives and loom's, and the cell that a snapshot is swapped in.
//!
//! `Arc` is the standard one in both worlds: a method on `self: &Arc<Self>` takes no other.

use std::sync::Arc;

#[cfg(nebula_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(nebula_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A value that is read often and replaced whole: a reader sees the old or the new one, never a mixture.
pub struct Swap<T> {
    #[cfg(not(nebula_loom))]
    cell: arc_swap::ArcSwap<T>,
    #[cfg(nebula_loom)]
    cell: loom::sync::Mutex<Arc<T>>,
}

impl<T> Swap<T> {
    /// Holds `value` until the first [`Swap::store`].
    pub fn new(value: T) -> Swap<T> {
        let value = Arc::new(value);
        #[cfg(not(nebula_loom))]
        return Swap { cell: arc_swap::ArcSwap::new(value) };
        #[cfg(nebula_loom)]
        return Swap { cell: loom::sync::Mutex::new(value) };
    }

    /// The value of now. # Cost: no lock, no contention with other readers.
    pub fn load(&self) -> Arc<T> {
        #[cfg(not(nebula_loom))]
        return self.cell.load_full();
        #[cfg(nebula_loom)]
        return Arc::clone(&self.cell.lock().expect("loom's mutex is never poisoned"));
    }

    /// Replaces the value for all readers that come after.
    pub fn store(&self, value: T) {
        let value = Arc::new(value);
        #[cfg(not(nebula_loom))]
        self.cell.store(value);
        #[cfg(nebula_loom)]
        {
            *self.cell.lock().expect("loom's mutex is never poisoned") = value;
        }
    }
}
