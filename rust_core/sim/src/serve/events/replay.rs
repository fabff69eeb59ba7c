//! Batches that somebody missed, on request.

use super::Batch;

/// The ROUTER socket that answers requests for earlier batches. As in vLLM it is looked at between two publications.
pub(crate) struct Replay {
    socket: zmq::Socket,
    topic: String,
}

/// Somebody asks for the batches from a sequence number on.
#[derive(Debug)]
pub(crate) struct Request {
    client: Vec<u8>,
    pub(crate) start: u64,
}

/// The sequence number that stands at the end of a reply: -1.
const END: [u8; 8] = [0xFF; 8];

// === impl Replay ===

impl Replay {
    pub(super) fn new(socket: zmq::Socket, topic: String) -> Replay {
        Replay { socket, topic }
    }

    /// A request that has come. One that is not written as it should be is ignored, as vLLM does.
    pub(crate) fn request(&self) -> Option<Request> {
        loop {
            let frames = self.socket.recv_multipart(zmq::DONTWAIT).ok()?;
            if let Some(request) = Request::of(frames) {
                return Some(request);
            }
        }
    }

    /// Sends batches and the mark of their end.
    pub(crate) fn answer(&self, request: &Request, batches: &[Batch]) {
        for batch in batches {
            self.send(request, self.topic.as_bytes(), batch.seq.to_be_bytes(), &batch.payload);
        }
        self.send(request, b"", END, b"");
    }

    /// A client that is gone, or reads nothing, is passed over.
    fn send(&self, request: &Request, topic: &[u8], seq: [u8; 8], payload: &[u8]) {
        let frames = [&request.client[..], b"", topic, &seq, payload];
        let _ = self.socket.send_multipart(frames, zmq::DONTWAIT);
    }
}

// === impl Request ===

impl Request {
    /// `[client, "", start]`, the start with its highest byte first.
    fn of(frames: Vec<Vec<u8>>) -> Option<Request> {
        let [client, _, start] = <[Vec<u8>; 3]>::try_from(frames).ok()?;
        let start = start.iter().fold(0_u64, |high, &byte| high << 8 | u64::from(byte));
        Some(Request { client, start })
    }
}
