//! Where a workload comes from, as one JSON document says it.

use serde::Deserialize;
use serde_json::Value;

use crate::workload::{Generator, Pace, Workload, WorkloadError};

/// A recorded workload; the record itself comes beside it.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Recorded {
    Mooncake { tokens_per_id: u32 },
    Sharegpt(Pace),
    Decisions {},
}

const RECORDED: [&str; 3] = ["mooncake", "sharegpt", "decisions"];

impl Workload {
    /// The workload that `source` describes: `{"kind": …}` and the fields of that kind. `record` holds the text of a
    /// trace, for the kinds that are read and not made up; `seed` is that of what is made up.
    ///
    /// # Errors
    /// An unknown kind, a field that is missing, unknown or wrong, a record that is missing or wrong.
    pub fn from_source(
        source: &Value,
        record: Option<&[u8]>,
        seed: u64,
    ) -> Result<Workload, WorkloadError> {
        let kind = source["kind"].as_str().unwrap_or_default();
        if !RECORDED.contains(&kind) {
            let generator = Generator::deserialize(source).map_err(refused)?;
            return Workload::generate(&generator, seed);
        }
        let record = record.ok_or_else(|| {
            WorkloadError::field(
                "trace",
                format!("is missing: a workload of kind {kind} is read from one"),
            )
        })?;
        match Recorded::deserialize(source).map_err(refused)? {
            Recorded::Mooncake { tokens_per_id } => Workload::mooncake(record, tokens_per_id),
            Recorded::Sharegpt(pace) => Workload::sharegpt(record, &pace),
            Recorded::Decisions {} => Workload::decisions(record),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` passes")]
fn refused(error: serde_json::Error) -> WorkloadError {
    WorkloadError::field("workload", error.to_string())
}
