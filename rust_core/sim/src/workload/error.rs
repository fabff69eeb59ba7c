//! Why a workload cannot be read or made.

/// What was wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// A line of a file.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The field, what is wrong with it, and what would be right.
        reason: String,
    },
    /// A field of a document or a parameter.
    #[error("{field}: {reason}")]
    Field {
        /// Its name, or its path within the document.
        field: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The whole of it.
    #[error("{0}")]
    Whole(String),
}

// === impl WorkloadError ===

impl WorkloadError {
    pub(super) fn line(line: usize, field: &str, reason: impl std::fmt::Display) -> WorkloadError {
        WorkloadError::Line { line, reason: format!("{field}: {reason}") }
    }

    pub(super) fn field(field: impl Into<String>, reason: impl Into<String>) -> WorkloadError {
        WorkloadError::Field { field: field.into(), reason: reason.into() }
    }
}
