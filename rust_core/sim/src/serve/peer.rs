//! A word to another engine.

use std::io;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Posts JSON over a connection of its own; gives the status of the answer.
///
/// # Errors
/// The other side is not there, or does not speak HTTP.
pub(crate) async fn post(
    host: &str,
    port: u16,
    path: &str,
    json: String,
) -> io::Result<StatusCode> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::post(path)
        .header(HOST, format!("{host}:{port}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(json)))
        .map_err(io::Error::other)?;
    tokio::select! {
        response = sender.send_request(request) => Ok(response.map_err(io::Error::other)?.status()),
        ended = connection => Err(ended.map_or_else(io::Error::other, |()| io::ErrorKind::UnexpectedEof.into())),
    }
}
