//! A server for one test, and a client that shows every byte.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod feed;

use std::net::SocketAddr;
use std::time::Duration;

use nebula_sim::timing::Timing;
use nebula_sim::{EngineConfig, Server, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An engine like the one that was captured, which waits for nothing.
pub fn config() -> SimConfig {
    SimConfig {
        name: "engine-a".to_owned(),
        speed: 0.0,
        seed: 7,
        ..SimConfig::plain("127.0.0.1:0", "tiny", engine(32, 1000.0))
    }
}

pub fn engine(block_size: u32, step_base_us: f64) -> EngineConfig {
    EngineConfig {
        block_size,
        kv_blocks: 1024,
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        max_model_len: 4096,
        timing: Timing {
            step_base_us,
            prefill_us_per_token: 20.0,
            prefill_ns_per_pair: 0.0,
            decode_us_per_seq: 30.0,
            decode_ns_per_resident_token: 0.0,
        },
    }
}

pub async fn start(config: SimConfig) -> Server {
    Server::start(config).await.expect("the server starts")
}

/// A reply as it came.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// False if the body ended before the head or its framing says so.
    pub complete: bool,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The payloads of the events, `[DONE]` included.
    pub fn events(&self) -> Vec<&str> {
        self.text().split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
    }

    /// Parses the bytes of a connection that has ended, or of a captured file.
    pub fn parse(raw: &[u8]) -> Reply {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head") + 4;
        let head = std::str::from_utf8(&raw[..end]).expect("a head of text");
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let announced: Option<usize> = headers
            .iter()
            .find(|(key, _)| key == "content-length")
            .and_then(|(_, n)| n.parse().ok());
        let (body, complete) = match announced {
            Some(len) => (raw[end..].to_vec(), raw.len() - end == len),
            None => dechunk(&raw[end..]),
        };
        Reply { status: status.expect("a status"), headers, body, complete }
    }
}

fn dechunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(line) = raw.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&raw[..line])
            .ok()
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        match size {
            Some(0) => return (body, true),
            Some(size) if raw.len() >= line + 2 + size + 2 => {
                body.extend_from_slice(&raw[line + 2..line + 2 + size]);
                raw = &raw[line + 2 + size + 2..];
            }
            _ => break,
        }
    }
    (body, false)
}

/// Opens a connection and writes a request with a JSON body.
pub async fn open(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let typed = headers.iter().any(|(key, _)| *key == "content-type");
    let content_type = if typed { "" } else { "content-type: application/json\r\n" };
    let extra =
        headers.iter().fold(String::new(), |all, (key, value)| all + key + ": " + value + "\r\n");
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n{content_type}{extra}content-length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("the request is written");
    stream
}

/// One request on a connection of its own; none if the connection was reset.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Reply> {
    let mut stream = open(addr, method, path, headers, body).await;
    let mut raw = Vec::new();
    match stream.read_to_end(&mut raw).await {
        Ok(_) if !raw.is_empty() => Some(Reply::parse(&raw)),
        _ => None,
    }
}

pub async fn post(addr: SocketAddr, path: &str, body: &str) -> Reply {
    send(addr, "POST", path, &[], body).await.expect("a reply")
}

pub async fn get(addr: SocketAddr, path: &str) -> Reply {
    send(addr, "GET", path, &[], "").await.expect("a reply")
}

/// Lets the server run until `done`.
pub async fn until(mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("it happens within ten seconds");
}

/// A file of `tests/data`.
pub fn captured(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(path).expect("captured bytes")
}

/// The keys of a JSON text in their order, with every value that is no object or list reduced to `_`.
pub fn skeleton(json: &str) -> String {
    let mut out = String::new();
    let mut rest = json;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            '"' => string_len(rest),
            '{' | '}' | '[' | ']' | ',' | ':' => 1,
            _ => rest.find([',', '}', ']']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        match first {
            '{' | '}' | '[' | ']' | ',' | ':' => out.push(first),
            _ if after.starts_with(':') => out.push_str(token.trim_matches('"')),
            // A list of values is one value.
            _ if out.ends_with("_,") => {
                out.pop();
            }
            _ => out.push('_'),
        }
        rest = after;
    }
    out
}

fn string_len(text: &str) -> usize {
    let mut escaped = false;
    let end = text[1..].char_indices().find(|&(_, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    });
    end.map_or(text.len(), |(at, _)| at + 2)
}
