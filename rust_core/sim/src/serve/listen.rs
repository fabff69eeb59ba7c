//! The door: who listens, and who is let in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::App;
use super::connection::connection;

/// What the engine does at its door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// Connections are accepted.
    Open,
    /// They are refused, until the door opens again by itself or is opened.
    Shut { for_ms: Option<u64> },
    /// The process ends with all its connections, and starts again after so many milliseconds.
    Down { for_ms: u64 },
    /// The server stops.
    Closed,
}

const BACKLOG: u32 = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest that an ending process waits for a client to read its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// Accepts connections until the process ends; then none is left. Gives the time until it starts again, if it does.
pub(crate) async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    mut door: watch::Receiver<Door>,
) -> Option<u64> {
    let mut down_ms = None;
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
                    Door::Down { for_ms } => (listener, down_ms) = (None, Some(for_ms)),
                    Door::Shut { for_ms } => match shut(listener.take(), for_ms, &app, &mut door).await {
                        Ok(opened) => listener = opened,
                        Err(for_ms) => (listener, down_ms) = (None, Some(for_ms)),
                    }
                }
            }
        }
    }
    if down_ms.is_some() {
        // All are cut but the one that asked for the end, which gets its answer.
        let answered = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, answered).await;
    }
    connections.shutdown().await;
    down_ms
}

/// Refuses connections until the door opens; none if it closes for good.
///
/// # Errors
/// The process ends and starts again after so many milliseconds.
async fn shut(
    listener: Option<TcpListener>,
    mut for_ms: Option<u64>,
    app: &App,
    door: &mut watch::Receiver<Door>,
) -> Result<Option<TcpListener>, u64> {
    let Some(addr) = listener.as_ref().and_then(|listener| listener.local_addr().ok()) else {
        return Ok(None);
    };
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
            Door::Closed => return Ok(None),
            Door::Down { for_ms } => return Err(for_ms),
            Door::Shut { for_ms: changed } => for_ms = changed,
        }
    }
    Ok(reserved.and_then(listen).ok())
}

/// Listens on an address that was reserved.
pub(crate) fn listen(reserved: TcpSocket) -> io::Result<TcpListener> {
    reserved.listen(BACKLOG)
}

/// Keeps an address from others without listening on it.
pub(crate) fn reserve(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}
