//! The life of the engine's process: it drives its ranks and answers connections, and starts over when it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::App;
use super::events::Replay;
use super::listen::{self, Door};

/// Time between two tries to get an address back.
const AGAIN: Duration = Duration::from_millis(20);

/// Lives until the door is closed; then no task and no connection is left.
pub(crate) async fn live(
    mut listener: TcpListener,
    mut replays: Vec<Option<Replay>>,
    app: Arc<App>,
    mut door: watch::Receiver<Door>,
) {
    let Ok(addr) = listener.local_addr() else { return };
    loop {
        let mut driving = JoinSet::new();
        for (rank, replay) in app.ranks.iter().zip(replays) {
            driving.spawn(Arc::clone(rank).run(replay));
        }
        let down_ms = listen::accept(listener, Arc::clone(&app), door.clone()).await;
        driving.shutdown().await;
        app.handoffs.stop().await;
        app.die();
        let Some(down_ms) = down_ms else { return };
        let born_again = tokio::select! {
            again = rebirth(addr, down_ms, &app) => again,
            _ = door.wait_for(|door| *door == Door::Closed) => return,
        };
        (listener, replays) = born_again;
        app.begin();
    }
}

/// Waits, and takes the same addresses again.
async fn rebirth(addr: SocketAddr, down_ms: u64, app: &App) -> (TcpListener, Vec<Option<Replay>>) {
    let reserved = listen::reserve(addr);
    tokio::time::sleep(Duration::from_millis(down_ms)).await;
    // libzmq closes its sockets in its own time.
    let replays = loop {
        match app.open() {
            Ok(replays) => break replays,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    let mut listening = reserved.and_then(listen::listen);
    loop {
        match listening {
            Ok(listener) => return (listener, replays),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
        listening = listen::reserve(addr).and_then(listen::listen);
    }
}
