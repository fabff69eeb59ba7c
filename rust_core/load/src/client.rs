//! Connections to the server: HTTP/1.1, kept open between requests.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config::Config;
use crate::error::Error;
use crate::failure::{Failure, Kind};

/// A spare connection is closed after so long: vLLM closes its end after 5 s.
const SPARE: Duration = Duration::from_secs(4);

/// Sends the requests of one run.
pub(crate) struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    session_header: Option<HeaderName>,
    connect_timeout: Duration,
}

// === impl Client ===

impl Client {
    /// # Errors
    /// A URL or a header that is none.
    pub(crate) fn new(config: &Config) -> Result<Client, Error> {
        let uri = config.uri()?;
        let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(uri.scheme_str() == Some("https"))?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(SPARE)
            .build(connector);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if config.checksum {
            headers.insert("x-sim-checksum", HeaderValue::from_static("1"));
        }
        for (name, value) in config.header_pairs()? {
            headers.insert(name, value);
        }
        let named = |name: &String| {
            name.parse().map_err(|_| Error::config("session_header", "is no name of a header"))
        };
        let session_header = config.session_header.as_ref().map(named).transpose()?;
        Ok(Client { pool, uri, headers, session_header, connect_timeout })
    }

    /// The head of the reply.
    ///
    /// # Errors
    /// [`Kind::Connect`] where no connection came about, [`Kind::Reset`] where it ended without a head.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which takes the request out of the engine.
    pub(crate) async fn post(&self, body: Bytes, key: u64) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(name) = &self.session_header {
            request.headers_mut().insert(name, HeaderValue::from(key));
        }
        self.pool.request(request).await.map_err(|error| {
            let cause = root_cause(&error);
            match (error.is_connect(), cause.as_str()) {
                (true, "deadline has elapsed") => {
                    let ms = self.connect_timeout.as_millis();
                    Failure::new(Kind::Connect, format!("no connection within {ms} ms"))
                }
                (true, _) => Failure::new(Kind::Connect, cause),
                (false, _) => Failure::new(Kind::Reset, cause),
            }
        })
    }
}

/// TLS by the system's authorities, which are read only where they are needed.
fn tls(needed: bool) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    if needed {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = rustls::crypto::ring::default_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::config("base_url", format!("TLS: {cause}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The innermost cause: "connection refused" says more than "client error (Connect)".
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
