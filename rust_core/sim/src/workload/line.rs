//! Files of one JSON object per line.

use serde::Deserialize;

use crate::workload::WorkloadError;

/// The lines that hold something, with their numbers, counted from 1.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = (1..).zip(text.split(|&byte| byte == b'\n'));
    numbered.filter(|(_, line)| !line.trim_ascii().is_empty())
}

/// The object that a line holds.
///
/// # Errors
/// Names the line and the field that is not as it must be.
pub(super) fn parse<'a, T: Deserialize<'a>>(
    number: usize,
    line: &'a [u8],
) -> Result<T, WorkloadError> {
    // Serde would take an array for the fields in order.
    if !line.trim_ascii_start().starts_with(b"{") {
        let reason = "is no JSON object".to_owned();
        return Err(WorkloadError::Line { line: number, reason });
    }
    let cause = match serde_json::from_slice(line) {
        Ok(object) => return Ok(object),
        Err(cause) => cause,
    };
    // Only now, on the way to a refusal, is it worth to learn which field was wrong.
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let field = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) if error.inner().is_data() => error.path().to_string(),
        _ => ".".to_owned(),
    };
    let reason = without_position(&cause);
    let reason = if field == "." { reason } else { format!("{field}: {reason}") };
    Err(WorkloadError::Line { line: number, reason })
}

/// The parser counts lines within what it was given, which is one line.
fn without_position(cause: &serde_json::Error) -> String {
    let text = cause.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    if cause.is_data() {
        return reason.to_owned();
    }
    format!("is not valid JSON: {reason} at column {}", cause.column())
}
