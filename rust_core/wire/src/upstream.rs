//! Pooled connections to the engines.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use nebula_route::Engine;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::Config;
use crate::error::Error;
use crate::tasks::Executor;

/// Largest answer to a probe that is read.
const PROBE_BYTES: usize = 4 * 1024 * 1024;

/// Sends requests to engines over kept connections.
pub(crate) struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    connect_timeout_ms: u64,
}

/// One request for one engine.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path_and_query: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Upstream {
    /// # Errors
    /// The file of authorities cannot be read.
    pub(crate) fn new(config: &Config, executor: Executor) -> Result<Upstream, Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_millis(config.connect_timeout_ms)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config.ca_file.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(executor)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_millis(config.pool_idle_ms))
            .pool_max_idle_per_host(config.pool_per_engine)
            .build(connector);
        Ok(Upstream { client, connect_timeout_ms: config.connect_timeout_ms })
    }

    /// The engine's response head.
    ///
    /// # Errors
    /// [`Retry::IfUnsent`](crate::Retry) if no connection came about, [`Retry::Always`](crate::Retry) if it broke.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which aborts the request in the engine.
    pub(crate) async fn send(
        &self,
        engine: &Engine,
        call: Call,
    ) -> Result<Response<Incoming>, Error> {
        let name = &engine.spec().name;
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = call.method;
        *request.uri_mut() = uri(engine, &call.path_and_query)?;
        *request.headers_mut() = call.headers;
        self.client.request(request).await.map_err(|error| {
            let cause = root_cause(&error);
            if !error.is_connect() {
                return Error::broken(name, &cause);
            }
            match cause.as_str() {
                "deadline has elapsed" => Error::connect(
                    name,
                    &format!("no connection within {} ms", self.connect_timeout_ms),
                ),
                _ => Error::connect(name, &cause),
            }
        })
    }

    /// The status and the body of an answer to JSON, whole.
    ///
    /// # Errors
    /// As [`Upstream::send`], or an answer over `limit` bytes.
    pub(crate) async fn post(
        &self,
        engine: &Engine,
        path: &'static str,
        body: Bytes,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), Error> {
        let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let call = Call {
            method: Method::POST,
            path_and_query: PathAndQuery::from_static(path),
            headers: HeaderMap::from_iter([json]),
            body,
        };
        let response = self.send(engine, call).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), limit).collect().await;
        let name = &engine.spec().name;
        let body = body.map_err(|cause| Error::broken(name, &cause.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    /// A small answer to a `GET`, whole.
    ///
    /// # Errors
    /// As [`Upstream::send`], or a status other than 200, or an answer over 4 MiB.
    pub(crate) async fn get(&self, engine: &Engine, path: &'static str) -> Result<Bytes, Error> {
        let call = Call {
            method: Method::GET,
            path_and_query: PathAndQuery::from_static(path),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let name = &engine.spec().name;
        let response = self.send(engine, call).await?;
        if response.status() != 200 {
            return Err(Error::broken(name, &format!("GET {path} answered {}", response.status())));
        }
        let body = http_body_util::Limited::new(response.into_body(), PROBE_BYTES);
        let body = body.collect().await.map_err(|cause| Error::broken(name, &cause.to_string()))?;
        Ok(body.to_bytes())
    }
}

/// The engine's URL, which may have a path of its own, and the request's path behind it.
fn uri(engine: &Engine, path_and_query: &PathAndQuery) -> Result<Uri, Error> {
    let base = engine.spec().url.trim_end_matches('/');
    let mut uri = String::with_capacity(base.len() + path_and_query.as_str().len());
    uri.push_str(base);
    uri.push_str(path_and_query.as_str());
    Uri::try_from(uri).map_err(|cause| Error::internal(format!("{base} is no URL: {cause}")))
}

fn tls(ca_file: Option<&str>) -> Result<rustls::ClientConfig, Error> {
    let roots = match ca_file {
        Some(file) => read_roots(Path::new(file))?,
        None => system_roots(),
    };
    let provider = rustls::crypto::ring::default_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::internal(format!("TLS: {cause}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The system's authorities. A machine without any still talks plain HTTP; HTTPS then says that the issuer is unknown.
fn system_roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn read_roots(file: &Path) -> Result<rustls::RootCertStore, Error> {
    let wrong = |cause: &dyn std::fmt::Display| {
        Error::internal(format!(
            "ca_file {}: {cause}; a PEM file with certificates is needed",
            file.display()
        ))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|cause| wrong(&cause))? {
        let certificate = certificate.map_err(|cause| wrong(&cause))?;
        roots.add(certificate).map_err(|cause| wrong(&cause))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"no certificate in it"));
    }
    Ok(roots)
}

/// The innermost cause: "connection refused" says more than "client error (Connect)".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
