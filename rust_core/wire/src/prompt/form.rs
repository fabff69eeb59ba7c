//! `multipart/form-data` (RFC 7578): the `model` field of an upload, which passes through as it is.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::memmem;

use super::{Key, Prompt, Reader, only_model};
use crate::error::Error;

/// Tokens that an upload is taken for: its length says nothing about the work that it makes.
const UPLOAD_TOKENS: u32 = 1_000;

pub(super) fn read(headers: &HeaderMap, body: Bytes, reader: &Reader<'_>) -> Result<Prompt, Error> {
    let boundary = boundary(headers).ok_or_else(|| {
        let message = "Content-Type must be multipart/form-data with a boundary";
        Error::bad_request(None, message)
    })?;
    let mut prompt = Prompt {
        model: String::new(),
        key: Key::empty(UPLOAD_TOKENS),
        ask: None,
        session: None,
        streamed: false,
        body,
        body_with_ids: None,
        strips_usage: false,
        cold: false,
    };
    let Some(span) = field(&prompt.body, boundary, "model") else {
        prompt.model = only_model(reader.router)?;
        return Ok(prompt);
    };
    let named = std::str::from_utf8(&prompt.body[span.clone()])
        .map_err(|_| Error::bad_request(Some("model".into()), "model: must be UTF-8 text"))?;
    if let Some(model) = reader.aliases.get(named) {
        let edited =
            [&prompt.body[..span.start], model.as_bytes(), &prompt.body[span.end..]].concat();
        prompt.model.clone_from(model);
        prompt.body = edited.into();
    } else {
        prompt.model = String::from(named);
    }
    Ok(prompt)
}

fn boundary(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (kind, parameters) = value.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameters
        .split(';')
        .find_map(|parameter| {
            let (name, value) = parameter.trim().split_once('=')?;
            name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"'))
        })
        .filter(|boundary| !boundary.is_empty())
}

/// Where the content of the field `name` stands. A boundary cannot occur inside a part, so parts are what lies between.
fn field(body: &[u8], boundary: &str, name: &str) -> Option<Range<usize>> {
    let delimiter = format!("--{boundary}");
    let wanted = format!("name=\"{name}\"");
    // A delimiter begins a line; the same bytes in the middle of one are content.
    let begins_line = |at: &usize| *at == 0 || body[..*at].ends_with(b"\r\n");
    let starts = || memmem::find_iter(body, delimiter.as_bytes()).filter(begins_line);
    starts().zip(starts().skip(1)).find_map(|(from, to)| {
        let start = from + delimiter.len();
        let part = body.get(start..to)?;
        let head_end = memmem::find(part, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&part[..head_end]).ok()?;
        let disposition = head
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
        let named = disposition.split(';').any(|parameter| parameter.trim() == wanted);
        let content = start + head_end + 4..to.checked_sub(2)?;
        (named && content.start <= content.end).then_some(content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\
        name=\"model\"\r\n\r\nnot this\r\n--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--XX--\r\n";

    #[test]
    fn the_model_field_is_found_and_file_content_is_not_mistaken_for_it() {
        let span = field(BODY, "XX", "model").unwrap();
        assert_eq!(&BODY[span], b"whisper");
        assert_eq!(field(BODY, "XX", "language"), None);
    }

    #[test]
    fn the_boundary_may_be_quoted_and_follow_other_parameters() {
        let mut headers = HeaderMap::new();
        let value = "Multipart/Form-Data; charset=utf-8; boundary=\"XX\"";
        headers.insert(CONTENT_TYPE, value.parse().unwrap());
        assert_eq!(boundary(&headers), Some("XX"));
    }
}
