//! Headers: which pass, and which belong to one connection alone.

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, HeaderMap,
    HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SERVER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};

/// The request's identity in logs of gateway and engine alike.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Selects one data-parallel rank of an engine.
pub(crate) const DATA_PARALLEL_RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");
/// The conversation that a request belongs to.
pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// Asks for the routing decision in the reply's headers.
pub(crate) const DEBUG: HeaderName = HeaderName::from_static("x-nebula-debug");
/// The engine that answered.
pub(crate) const ENGINE: HeaderName = HeaderName::from_static("x-nebula-engine");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers of one connection (RFC 9110, 7.6.1); they never pass.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Whether the client wants to know how its request was routed.
pub(crate) fn is_debug(headers: &HeaderMap) -> bool {
    headers.get(DEBUG).is_some_and(|value| value == "1")
}

/// Removes what belongs to the client's connection and what this hop sets itself.
///
/// `Accept-Encoding` goes too: replies pass byte for byte and their last chunk is read, so they come uncompressed.
pub(crate) fn to_engine(headers: &mut HeaderMap, form: bool) {
    remove_hop_by_hop(headers);
    for name in [HOST, CONTENT_LENGTH, EXPECT, ACCEPT_ENCODING, DEBUG] {
        headers.remove(name);
    }
    if !form {
        // Engines refuse a JSON body under any other type; clients such as curl send a form's.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
}

/// Removes what belongs to the engine's connection and what the gateway's server sets itself.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(SERVER);
    headers.remove(DATE);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Names that the `Connection` header lists are hop-by-hop as well.
    let listed: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
    for name in
        listed.iter().filter_map(|value| value.to_str().ok()).flat_map(|names| names.split(','))
    {
        headers.remove(name.trim());
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether a reply is a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// An identity for a request whose client gave it none.
pub(crate) fn new_request_id() -> HeaderValue {
    let id = format!("{:032x}", fastrand::u128(..));
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn headers_of_the_connection_do_not_reach_the_engine() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("host", "gateway"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("traceparent", "00-1-2-01"),
        ]);
        to_engine(&mut headers, false);
        let left = map(&[("content-type", "application/json"), ("traceparent", "00-1-2-01")]);
        assert_eq!(headers, left);
    }

    #[test]
    fn a_form_keeps_its_boundary() {
        let mut headers = map(&[("content-type", "multipart/form-data; boundary=x")]);
        to_engine(&mut headers, true);
        assert_eq!(headers[CONTENT_TYPE], "multipart/form-data; boundary=x");
    }
}
