//! The sockets of a subscriber, as libzmq has them.

use std::sync::atomic::{AtomicU64, Ordering};

use zmq::{Context, Socket, SocketEvent};

use super::EventsConfig;
use super::decode;
use super::sequence::Message;

/// A subscription to one publisher, and what its connection does.
pub(super) struct Subscriber {
    pub(super) socket: Socket,
    pub(super) monitor: Socket,
}

/// A message on either kind of socket.
pub(super) enum Received {
    Batch(Message),
    /// The end of an answer.
    End,
    /// None that an engine sends.
    Broken,
}

/// Contexts, each of which has room for some sockets.
#[derive(Default)]
pub(super) struct Contexts {
    contexts: Vec<(Context, usize)>,
}

/// libzmq allows 1,023 sockets in a context by default, and a rank takes four: subscription, both ends of its monitor,
/// replay.
const RANKS_PER_CONTEXT: usize = 128;

/// A batch or an answer larger than this is none.
const MESSAGE_BYTES: i64 = 64 << 20;

/// The number at the end of an answer: -1.
const END: u64 = u64::MAX;

/// Names of monitors, of which each needs its own.
static MONITORS: AtomicU64 = AtomicU64::new(0);

// === impl Subscriber ===

impl Subscriber {
    pub(super) fn connect(
        context: &Context,
        config: &EventsConfig,
        endpoint: &str,
        topic: &str,
    ) -> zmq::Result<Subscriber> {
        let socket = subscription(context, config, endpoint)?;
        socket.set_subscribe(topic.as_bytes())?;
        let address = format!("inproc://monitor-{}", MONITORS.fetch_add(1, Ordering::Relaxed));
        let events = SocketEvent::HANDSHAKE_SUCCEEDED.to_raw() | SocketEvent::DISCONNECTED.to_raw();
        socket.monitor(&address, events.into())?;
        let monitor = context.socket(zmq::PAIR)?;
        monitor.set_linger(0)?;
        monitor.connect(&address)?;
        socket.connect(endpoint)?;
        Ok(Subscriber { socket, monitor })
    }

    /// What the connection did last, if it did anything since this was asked: true if it came about.
    pub(super) fn came_about(&self) -> Option<bool> {
        let mut last = None;
        while let Ok(frames) = self.monitor.recv_multipart(zmq::DONTWAIT) {
            if let Some(&[low, high, ..]) = frames.first().map(Vec::as_slice) {
                let event = SocketEvent::from_raw(u16::from_ne_bytes([low, high]));
                last = Some(event == SocketEvent::HANDSHAKE_SUCCEEDED);
            }
        }
        last
    }
}

// === impl Received ===

impl Received {
    /// The last two frames are number and batch; the topic before them is missing in answers of older releases.
    pub(super) fn of(mut frames: Vec<Vec<u8>>) -> Received {
        let (Some(payload), Some(seq)) = (frames.pop(), frames.pop()) else {
            return Received::Broken;
        };
        match seq.try_into().map(u64::from_be_bytes) {
            Ok(END) => Received::End,
            Ok(seq) => Received::Batch(Message { seq, ts: decode::ts(&payload), payload }),
            Err(_) => Received::Broken,
        }
    }
}

// === impl Contexts ===

impl Contexts {
    /// One with room for the sockets of another rank, and its number.
    pub(super) fn take(&mut self) -> (Context, usize) {
        let free = self.contexts.iter().position(|(_, ranks)| *ranks < RANKS_PER_CONTEXT);
        let at = free.unwrap_or_else(|| {
            self.contexts.push((Context::new(), 0));
            self.contexts.len() - 1
        });
        self.contexts[at].1 += 1;
        (self.contexts[at].0.clone(), at)
    }

    pub(super) fn give_back(&mut self, at: usize) {
        self.contexts[at].1 -= 1;
    }
}

/// A socket that engines dial in to. It has no topics yet.
pub(super) fn bound(
    context: &Context,
    config: &EventsConfig,
    endpoint: &str,
) -> zmq::Result<Socket> {
    let socket = subscription(context, config, endpoint)?;
    socket.bind(endpoint)?;
    Ok(socket)
}

/// Asks for the batches from a number on. Each request has a socket of its own: the protocol tells no answer from
/// another, and what still comes for an earlier request goes nowhere with that one's socket.
pub(super) fn ask(
    context: &Context,
    config: &EventsConfig,
    endpoint: &str,
    from: u64,
) -> zmq::Result<Socket> {
    let socket = context.socket(zmq::DEALER)?;
    prepare(&socket, config, endpoint)?;
    socket.connect(endpoint)?;
    // The empty frame is what a REQ socket would send; engines pass over requests without it.
    socket.send_multipart([&b""[..], &from.to_be_bytes()], zmq::DONTWAIT)?;
    Ok(socket)
}

fn subscription(context: &Context, config: &EventsConfig, endpoint: &str) -> zmq::Result<Socket> {
    let socket = context.socket(zmq::SUB)?;
    prepare(&socket, config, endpoint)?;
    Ok(socket)
}

fn prepare(socket: &Socket, config: &EventsConfig, endpoint: &str) -> zmq::Result<()> {
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    socket.set_linger(0)?;
    socket.set_rcvhwm(number(config.receive_batches))?;
    socket.set_maxmsgsize(MESSAGE_BYTES)?;
    socket.set_ipv6(endpoint.contains('['))?;
    socket.set_reconnect_ivl(number(config.reconnect_ms))?;
    socket.set_reconnect_ivl_max(number(config.reconnect_max_ms))?;
    // A machine that is gone without a word: seconds, where the system's own defaults are hours.
    socket.set_tcp_keepalive(1)?;
    socket.set_tcp_keepalive_idle(10)?;
    socket.set_tcp_keepalive_intvl(5)?;
    socket.set_tcp_keepalive_cnt(3)
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests as captured;
    use super::*;

    #[test]
    fn answers_with_and_without_a_topic_read_alike() {
        let captured = captured::vllm();
        let (seq, payload) = captured::frames(&captured["replay_from_6_hex"][0]);
        let number = seq.to_be_bytes().to_vec();
        for before in [vec![vec![], b"kv".to_vec()], vec![vec![]], vec![]] {
            let frames = [before, vec![number.clone(), payload.clone()]].concat();
            let Received::Batch(message) = Received::of(frames) else { panic!("a batch") };
            assert_eq!((message.seq, &message.payload), (6, &payload));
            assert!(message.ts.is_some());
        }
        let (end, empty) = captured::frames(&captured["replay_from_6_hex"][1]);
        let frames = vec![vec![], vec![], end.to_be_bytes().to_vec(), empty];
        assert!(matches!(Received::of(frames), Received::End));
    }

    #[test]
    fn what_no_engine_sends_is_broken() {
        for frames in [vec![], vec![vec![0; 8]], vec![vec![0; 7], vec![]]] {
            assert!(matches!(Received::of(frames), Received::Broken));
        }
    }

    #[test]
    fn ranks_beyond_a_contexts_room_get_another_one() {
        let mut contexts = Contexts::default();
        let first: Vec<usize> = (0..RANKS_PER_CONTEXT).map(|_| contexts.take().1).collect();
        assert!(first.iter().all(|at| *at == 0));
        assert_eq!(contexts.take().1, 1);
        contexts.give_back(0);
        assert_eq!(contexts.take().1, 0);
    }
}
