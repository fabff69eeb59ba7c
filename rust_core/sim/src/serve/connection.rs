//! One connection, and how it ends.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::app::App;
use super::http::answer;
use super::listen::Door;

/// vLLM closes a connection that has been idle for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How a connection ends, as told by what answers its requests.
#[derive(Debug, Default)]
pub(crate) struct Parting {
    /// With a reset.
    pub(crate) reset: AtomicBool,
    /// After the reply in flight, though the process ends: it asked for that.
    pub(crate) answered: AtomicBool,
}

/// A connection that can be told how to end.
struct Line {
    stream: TcpStream,
    parting: Arc<Parting>,
}

/// Serves one connection until either side ends it. When the door shuts, what is being answered is answered first; when
/// the process ends, it is cut.
pub(crate) async fn connection(stream: TcpStream, app: Arc<App>, mut door: watch::Receiver<Door>) {
    // Small writes are the point of a stream of tokens. A socket that cannot be told so still works.
    let _ = stream.set_nodelay(true);
    let parting = Arc::new(Parting::default());
    let line = TokioIo::new(Line { stream, parting: Arc::clone(&parting) });
    let told = Arc::clone(&parting);
    let service = service_fn(move |request| {
        let (app, parting) = (Arc::clone(&app), Arc::clone(&told));
        async move {
            let answer = answer(&app, request, &parting).await;
            answer.inspect_err(|_| parting.reset.store(true, Ordering::Relaxed))
        }
    });
    let mut http = http1::Builder::new();
    // hyper counts the time until a head is whole from the end of the last reply: an idle connection is closed by it.
    http.pipeline_flush(true).timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
    let mut connection = pin!(http.serve_connection(line, service));
    // A connection that fails has lost its client, or was made to fail: nobody is left to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = async { drop(door.wait_for(|door| *door != Door::Open).await) } => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => {}
        () = cut(&mut door, &parting) => {}
    }
}

/// Waits until the process ends, unless this connection is let finish.
async fn cut(door: &mut watch::Receiver<Door>, parting: &Parting) {
    let ended = door.wait_for(|door| matches!(door, Door::Down { .. })).await.is_ok();
    if !ended || parting.answered.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

// === impl Line ===

impl Drop for Line {
    fn drop(&mut self) {
        if self.parting.reset.load(Ordering::Relaxed) {
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
