//! The function `strftime_now` of `transformers`.

use jiff::ZonedDateTime;
use minijinja::{Error, ErrorKind};

/// The directives that do not depend on a locale, and are the same in Python.
const DIRECTIVES: &str = "ABFHIMSTUWYabdejmpwy%";

/// `time` in the form that `format` asks for, as C's `strftime` writes it.
///
/// # Errors
/// A directive outside of the ones that are known to be the same.
pub(super) fn strftime(format: &str, time: &ZonedDateTime) -> Result<String, Error> {
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        let directive = match letter {
            '%' => letters.next(),
            _ => continue,
        };
        let directive = if directive == Some('-') { letters.next() } else { directive };
        if !directive.is_some_and(|directive| DIRECTIVES.contains(directive)) {
            let why = format!("strftime_now: the format {format:?}");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    }
    jiff::fmt::strtime::format(format, time)
        .map_err(|cause| Error::new(ErrorKind::InvalidOperation, cause.to_string()))
}
