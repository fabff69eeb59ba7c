//! Where the events of an engine's ranks are: as its owner says, as it says itself, or where vLLM puts them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::Error;

/// Where an engine's owner says that its events are. All absent means: ask the engine, else guess.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EventsSetting {
    /// Address of the first rank's publisher; the others have the ports after it. A host that stands for any (`*`) is
    /// taken for the engine's.
    pub endpoint: Option<String>,
    /// Address of the first rank's replay socket, likewise.
    pub replay_endpoint: Option<String>,
    /// The topic that it publishes under.
    pub topic: Option<String>,
    /// True if it dials in to the gateway's own address; the topic then tells it from others.
    pub dials_in: bool,
}

/// Where the events of one rank are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSource {
    /// The rank within its engine.
    pub rank_index: u32,
    /// The publisher's address; `None` if the engine dials in.
    pub endpoint: Option<String>,
    /// The replay socket's address.
    pub replay: Option<String>,
    /// What topics begin with; of an engine that dials in, the whole topic.
    pub topic: String,
}

/// One entry of vLLM's `GET /kv_event_sources`.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    enable_kv_cache_events: bool,
    #[serde(default)]
    publisher: Option<String>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    replay_endpoint: Option<String>,
    #[serde(default)]
    buffer_steps: Option<u64>,
    #[serde(default)]
    topic: Option<String>,
}

/// vLLM's port for KV events; rank `n` has the `n`th after it.
const PORT: u16 = 5557;

/// Hosts that stand for any, and so for none.
const WILDCARDS: [&str; 3] = ["*", "0.0.0.0", "[::]"];
/// Hosts that an engine calls itself by, and nobody elsewhere.
const LOOPBACKS: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// The event sources of an engine with `ranks` ranks at `engine_url`: as `setting` says; else as the engine says in
/// `told`, the body of its `GET /kv_event_sources`; else at vLLM's own port of its host, without replay. Empty if the
/// engine says that it publishes none.
///
/// # Errors
/// An address, the URL or the body cannot be read; the message says which and what would be right.
pub fn sources_of(
    engine_url: &str,
    ranks: u32,
    setting: &EventsSetting,
    told: Option<&[u8]>,
) -> Result<Vec<RankSource>, Error> {
    let host = host(engine_url)?;
    let topic = setting.topic.clone().unwrap_or_default();
    let replay = |rank| {
        let configured = setting.replay_endpoint.as_deref();
        configured.map(|at| nth(at, rank).map(|at| reachable(&at, host, &WILDCARDS))).transpose()
    };
    let configured = match (&setting.endpoint, told) {
        (None, Some(body)) if !setting.dials_in => return told_sources(body, ranks, host, setting),
        (Some(endpoint), _) => endpoint.clone(),
        (None, _) => format!("tcp://{host}:{PORT}"),
    };
    (0..ranks)
        .map(|rank| {
            let endpoint = if setting.dials_in {
                None
            } else {
                Some(reachable(&nth(&configured, rank)?, host, &WILDCARDS))
            };
            let topic = topic.clone();
            Ok(RankSource { rank_index: rank, endpoint, replay: replay(rank)?, topic })
        })
        .collect()
}

fn told_sources(
    body: &[u8],
    ranks: u32,
    host: &str,
    setting: &EventsSetting,
) -> Result<Vec<RankSource>, Error> {
    let told: BTreeMap<u32, Told> = serde_json::from_slice(body).map_err(|cause| {
        Error::internal(format!("/kv_event_sources: expected one entry per rank: {cause}"))
    })?;
    let publishes =
        |told: &Told| told.enable_kv_cache_events && told.publisher.as_deref() == Some("zmq");
    let mut sources = Vec::new();
    for (rank_index, told) in
        told.into_iter().filter(|(rank, told)| *rank < ranks && publishes(told))
    {
        let Some(endpoint) = told.endpoint else { continue };
        let here = |at: &str| reachable(&reachable(at, host, &WILDCARDS), host, &LOOPBACKS);
        let replay = match &setting.replay_endpoint {
            Some(replay) => Some(reachable(&nth(replay, rank_index)?, host, &WILDCARDS)),
            // Without a buffer every answer is empty.
            None if told.buffer_steps == Some(0) => None,
            None => told.replay_endpoint.as_deref().map(here),
        };
        sources.push(RankSource {
            rank_index,
            endpoint: Some(here(&endpoint)),
            replay,
            topic: setting.topic.clone().or(told.topic).unwrap_or_default(),
        });
    }
    Ok(sources)
}

/// The address of a rank, whose first rank has `first`: the next port, or a name of its own.
fn nth(first: &str, rank: u32) -> Result<String, Error> {
    let wrong = |why: &str| Error::internal(format!("KV events endpoint {first}: {why}"));
    let (transport, address) = first
        .split_once("://")
        .ok_or_else(|| wrong("expected tcp://host:port, ipc://path or inproc://name"))?;
    match transport {
        "tcp" => {
            let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            let port = port.ok_or_else(|| wrong("its port is not between 1 and 65535"))?;
            let port = u16::try_from(rank).ok().and_then(|rank| port.checked_add(rank));
            let port = port.ok_or_else(|| wrong("the port of the last rank exceeds 65535"))?;
            Ok(format!("tcp://{host}:{port}"))
        }
        "inproc" if rank > 0 => Ok(format!("{first}_dp{rank}")),
        "ipc" if rank > 0 => Err(wrong("an ipc path has no next one; ranks need tcp")),
        "ipc" | "inproc" => Ok(first.to_owned()),
        _ => Err(wrong("its transport is none of tcp, ipc, inproc")),
    }
}

/// The address with the engine's host in place of one of these.
fn reachable(endpoint: &str, engine_host: &str, hosts: &[&str]) -> String {
    let tcp = endpoint.strip_prefix("tcp://").and_then(|address| address.rsplit_once(':'));
    match tcp {
        Some((host, port)) if hosts.contains(&host) => format!("tcp://{engine_host}:{port}"),
        _ => endpoint.to_owned(),
    }
}

/// The host of a URL, in brackets where it is an IPv6 address.
fn host(url: &str) -> Result<&str, Error> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match authority.find(']') {
        Some(end) => &authority[..=end],
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    if host.is_empty() {
        let message = format!("engine URL {url} has no host; expected http://host:port");
        return Err(Error::internal(message));
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://gpu-3:8000/v1";

    fn places(sources: &[RankSource]) -> Vec<(Option<&str>, Option<&str>, &str)> {
        sources
            .iter()
            .map(|at| (at.endpoint.as_deref(), at.replay.as_deref(), at.topic.as_str()))
            .collect()
    }

    #[test]
    fn without_a_word_they_are_at_vllms_own_port() {
        let sources = sources_of(URL, 2, &EventsSetting::default(), None).unwrap();
        let expected = [(Some("tcp://gpu-3:5557"), None, ""), (Some("tcp://gpu-3:5558"), None, "")];
        assert_eq!(places(&sources), expected);
    }

    #[test]
    fn the_owners_word_goes_before_the_engines() {
        let setting = EventsSetting {
            endpoint: Some("tcp://*:7000".to_owned()),
            replay_endpoint: Some("tcp://other:7100".to_owned()),
            topic: Some("kv".to_owned()),
            dials_in: false,
        };
        let told = include_bytes!("../../tests/data/kv_event_sources.json");
        let sources = sources_of("http://[fd00::2]:8000", 2, &setting, Some(told)).unwrap();
        let expected = [
            (Some("tcp://[fd00::2]:7000"), Some("tcp://other:7100"), "kv"),
            (Some("tcp://[fd00::2]:7001"), Some("tcp://other:7101"), "kv"),
        ];
        assert_eq!(places(&sources), expected);
    }

    #[test]
    fn an_engine_tells_its_own_ports_and_its_host_is_where_it_answers() {
        let told = include_bytes!("../../tests/data/kv_event_sources.json");
        let sources = sources_of(URL, 1, &EventsSetting::default(), Some(told)).unwrap();
        let expected = [(Some("tcp://gpu-3:5557"), Some("tcp://gpu-3:5657"), "kv")];
        assert_eq!(places(&sources), expected);
    }

    #[test]
    fn an_engine_that_publishes_nothing_has_no_sources() {
        for told in [
            r#"{"0":{"enable_kv_cache_events":false,"publisher":"zmq","endpoint":"tcp://*:5557"}}"#,
            r#"{"0":{"enable_kv_cache_events":true,"publisher":"null","endpoint":"tcp://*:5557"}}"#,
            r#"{"0":{"enable_kv_cache_events":true,"publisher":null}}"#,
            "{}",
        ] {
            let setting = EventsSetting::default();
            assert_eq!(sources_of(URL, 1, &setting, Some(told.as_bytes())).unwrap(), [], "{told}");
        }
        let wrong = sources_of(URL, 1, &EventsSetting::default(), Some(b"[]")).unwrap_err();
        assert!(wrong.message.starts_with("/kv_event_sources: expected one entry per rank"));
    }

    #[test]
    fn a_replay_without_a_buffer_is_none() {
        let told = br#"{"0":{"enable_kv_cache_events":true,"publisher":"zmq","buffer_steps":0,
            "endpoint":"tcp://10.0.0.7:5557","replay_endpoint":"tcp://10.0.0.7:5657","new":1}}"#;
        let sources = sources_of(URL, 4, &EventsSetting::default(), Some(told)).unwrap();
        assert_eq!(places(&sources), [(Some("tcp://10.0.0.7:5557"), None, "")]);
    }

    #[test]
    fn an_engine_that_dials_in_has_no_address() {
        let setting = EventsSetting {
            topic: Some("kv@a@tiny".to_owned()),
            dials_in: true,
            ..EventsSetting::default()
        };
        let sources = sources_of(URL, 1, &setting, Some(b"{}")).unwrap();
        assert_eq!(places(&sources), [(None, None, "kv@a@tiny")]);
    }

    #[test]
    fn an_address_that_cannot_be_says_why() {
        for (endpoint, why) in [
            ("gpu-3:5557", "expected tcp://host:port"),
            ("tcp://gpu-3", "it has no port"),
            ("tcp://gpu-3:0", "its port is not between 1 and 65535"),
            ("tcp://gpu-3:65535", "the port of the last rank exceeds 65535"),
            ("ipc:///tmp/kv", "an ipc path has no next one"),
            ("udp://gpu-3:5557", "its transport is none of"),
        ] {
            let setting =
                EventsSetting { endpoint: Some(endpoint.to_owned()), ..EventsSetting::default() };
            let error = sources_of(URL, 2, &setting, None).unwrap_err();
            assert!(error.message.contains(why), "{endpoint}: {}", error.message);
        }
        assert!(sources_of("http://", 1, &EventsSetting::default(), None).is_err());
    }
}
