//! Connections: who listens, who is connected, and how each side of it ends.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::http::{App, answer};

/// What the engine does at its door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// Connections are accepted.
    Open,
    /// They are refused, until the door opens again by itself or is opened.
    Shut { for_ms: Option<u64> },
    /// The server stops.
    Closed,
}

const BACKLOG: u32 = 1024;
/// vLLM closes a connection that has been idle for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A connection that can be told to end with a reset.
struct Line {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

/// Accepts connections until the door is closed; then none is left.
pub(crate) async fn accept(listener: TcpListener, app: Arc<App>, mut door: watch::Receiver<Door>) {
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    while let Some(open) = &listener {
        tokio::select! {
            accepted = open.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&app), door.clone()));
                }
                // Out of file descriptors, for instance: trying again at once would only burn the core.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
            changed = door.changed() => {
                let wanted = if changed.is_ok() { *door.borrow_and_update() } else { Door::Closed };
                match wanted {
                    Door::Open => {}
                    Door::Closed => listener = None,
                    Door::Shut { for_ms } => listener = shut(listener.take(), for_ms, &app, &mut door).await,
                }
            }
        }
    }
    connections.shutdown().await;
}

/// Refuses connections until the door opens; none if it closes for good.
async fn shut(
    listener: Option<TcpListener>,
    mut for_ms: Option<u64>,
    app: &App,
    door: &mut watch::Receiver<Door>,
) -> Option<TcpListener> {
    let addr = listener.as_ref()?.local_addr().ok()?;
    drop(listener);
    // A socket that is bound and does not listen refuses connections, and keeps the port from others.
    let reserved = reserve(addr);
    loop {
        let timeout = async {
            match for_ms {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        };
        let wanted = tokio::select! {
            () = timeout => {
                app.set_fault(None);
                Door::Open
            }
            changed = door.changed() => match changed {
                Ok(()) => *door.borrow_and_update(),
                Err(_) => Door::Closed,
            }
        };
        match wanted {
            Door::Open => break,
            Door::Closed => return None,
            Door::Shut { for_ms: changed } => for_ms = changed,
        }
    }
    reserved.and_then(|socket| socket.listen(BACKLOG)).ok()
}

fn reserve(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

/// Serves one connection until either side ends it. When the door shuts, what is being answered is answered first.
async fn connection(stream: TcpStream, app: Arc<App>, mut door: watch::Receiver<Door>) {
    // Small writes are the point of a stream of tokens. A socket that cannot be told so still works.
    let _ = stream.set_nodelay(true);
    let reset = Arc::new(AtomicBool::new(false));
    let line = TokioIo::new(Line { stream, reset: Arc::clone(&reset) });
    let service = service_fn(move |request| {
        let (app, reset) = (Arc::clone(&app), Arc::clone(&reset));
        async move { answer(&app, request).await.inspect_err(|_| reset.store(true, Ordering::Relaxed)) }
    });
    let mut http = http1::Builder::new();
    // hyper counts the time until a head is whole from the end of the last reply: an idle connection is closed by it.
    http.pipeline_flush(true).timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
    let mut connection = pin!(http.serve_connection(line, service));
    // A connection that fails has lost its client, or was made to fail: nobody is left to tell.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = async { drop(door.wait_for(|door| *door != Door::Open).await) } => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

// === impl Line ===

impl Drop for Line {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // Makes the close that follows a reset.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
