//! What every connection shares.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderMap;
use http::header::HeaderValue;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::driver::Driver;
use super::events::Replay;
use super::handoff::Handoffs;
use super::listen::Door;
use super::refusal::Refusal;
use crate::fault::{Busy, Effect, Fault, Faults, Lie, Wish};
use crate::{Engine, Error, SimConfig};

const RANK_HEADER: &str = "x-data-parallel-rank";
/// How much more a waiting request weighs than a running one, per share of the KV cache beyond the half in use.
const PRESSURE: f64 = 6.0;

/// What every connection shares.
pub(crate) struct App {
    pub(crate) config: SimConfig,
    /// The names that the model is served by, the first of them its name in replies and metrics.
    pub(crate) served: Vec<String>,
    /// That first name as a JSON string.
    pub(crate) model_json: String,
    /// One per rank; at least one.
    pub(crate) ranks: Vec<Arc<Driver>>,
    pub(crate) name: HeaderValue,
    pub(crate) models: Bytes,
    /// How others reach this machine.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Unix seconds.
    pub(crate) started: Mutex<f64>,
    pub(crate) handoffs: Handoffs,
    /// Requests that were refused for too many requests, and for too many tokens in the queue.
    refused: [AtomicU64; 2],
    /// In force from the start of the process.
    first_faults: Vec<Fault>,
    faults: Mutex<Faults>,
    ids: Mutex<fastrand::Rng>,
    door: watch::Sender<Door>,
    sockets: zmq::Context,
}

// === impl App ===

impl App {
    /// # Errors
    /// [`Error::Config`] names a field that nobody could serve with, [`Error::Events`] an address.
    pub(crate) fn new(
        config: SimConfig,
        addr: SocketAddr,
        door: watch::Sender<Door>,
    ) -> Result<App, Error> {
        let name = HeaderValue::try_from(&config.name).map_err(|_| Error::Config {
            field: "name",
            reason: "must be printable ASCII".to_owned(),
        })?;
        let mut ids = fastrand::Rng::with_seed(config.seed);
        let served = match config.served_model_names.as_slice() {
            [] => vec![config.model.clone()],
            names => names.to_vec(),
        };
        let models = models(&config, &served, &mut ids);
        let ranks = (0..config.data_parallel_size)
            .map(|rank| Driver::new(&config, rank).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let first_faults = config.faults.iter().filter_map(|fault| first_fault(fault).transpose());
        let app = App {
            first_faults: first_faults.collect::<Result<_, _>>()?,
            handoffs: Handoffs::new(&config.kv_transfer, config.speed, Handle::current()),
            refused: Default::default(),
            port: addr.port(),
            model_json: serde_json::Value::from(served[0].as_str()).to_string(),
            served,
            ranks,
            name,
            models: models.into(),
            host: reachable(addr.ip()),
            started: Mutex::new(unix_now()),
            faults: Mutex::default(),
            ids: Mutex::new(ids),
            door,
            sockets: zmq::Context::new(),
            config,
        };
        app.begin();
        Ok(app)
    }

    /// Opens what the ranks publish through; gives what each answers requests for missed events with.
    ///
    /// # Errors
    /// [`Error::Events`] if an address cannot be had. Then none is held.
    pub(crate) fn open(&self) -> Result<Vec<Option<Replay>>, Error> {
        let opened = self.ranks.iter().map(|rank| rank.open(&self.sockets)).collect();
        if let Err(error) = opened {
            self.die();
            return Err(error);
        }
        opened
    }

    /// Loses everything, as a process does that ends.
    pub(crate) fn die(&self) {
        self.ranks.iter().for_each(|rank| rank.forget());
    }

    /// Begins as a process does: with another name, no counts, and the faults that it is configured to begin with.
    pub(crate) fn begin(&self) {
        self.handoffs.restart(self.ranks.len(), &mut self.ids.lock());
        self.refused.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        *self.started.lock() = unix_now();
        self.set_fault(None);
        self.first_faults.iter().for_each(|fault| self.set_fault(Some(*fault)));
    }

    /// Refuses a request if there are too many already.
    ///
    /// # Errors
    /// Which bound it met.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        let count = |look: fn(&Engine) -> u64| -> u64 {
            self.ranks.iter().map(|rank| rank.with_engine(|engine| look(engine))).sum()
        };
        let refuse = |which: usize, busy| {
            self.refused[which].fetch_add(1, Ordering::Relaxed);
            Err(Refusal::Busy(busy))
        };
        if let Some(most) = self.config.max_num_queued_reqs {
            let unfinished = |engine: &Engine| {
                (engine.scheduler().running() + engine.scheduler().waiting()) as u64
            };
            if count(unfinished) >= u64::from(most) {
                return refuse(0, Busy::Requests);
            }
        }
        if let Some(most) = self.config.max_num_queued_tokens
            && count(|engine| engine.scheduler().queued_tokens()) >= most
        {
            return refuse(1, Busy::Tokens);
        }
        Ok(())
    }

    /// How many requests each bound refused.
    pub(crate) fn rejections(&self) -> [u64; 2] {
        self.refused.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// True if nothing is waited for.
    pub(crate) fn rushes(&self) -> bool {
        self.config.speed == 0.0
    }

    /// The rank that answers a request: the one that it names, or the least loaded.
    ///
    /// # Errors
    /// It names one that is not there. A name that is no number is none, as in vLLM.
    pub(crate) fn rank(&self, headers: &HeaderMap) -> Result<usize, Refusal> {
        let ranks = self.ranks.len();
        let named =
            headers.get(RANK_HEADER).and_then(|rank| rank.to_str().ok()?.trim().parse().ok());
        let Some(named) = named else {
            return Ok(self.least_loaded());
        };
        let named: i64 = named;
        usize::try_from(named).ok().filter(|&rank| rank < ranks).ok_or_else(|| {
            let message = format!("data_parallel_rank {named} is out of range [0, {ranks}).");
            Refusal::bad_request(message, None)
        })
    }

    /// By the rule of vLLM's balancer; the first one of equals.
    fn least_loaded(&self) -> usize {
        if let [_] = self.ranks[..] {
            return 0;
        }
        let mut least = (f64::INFINITY, 0);
        for (rank, driver) in self.ranks.iter().enumerate() {
            let load = driver.with_engine(|engine| load(engine));
            if load < least.0 {
                least = (load, rank);
            }
        }
        least.1
    }

    /// Puts a fault in force; none ends all.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let slowdown = self.faults.lock().set(fault);
        let events = fault.filter(|fault| matches!(fault.effect, Effect::Events { .. }));
        for rank in &self.ranks {
            rank.with_engine(|engine| engine.set_slowdown(slowdown));
            if fault.is_none() || events.is_some() {
                rank.with_feed(|feed| feed.set_fault(events));
            }
        }
        let wanted = match fault.map(|fault| fault.effect) {
            Some(Effect::Refuse { for_ms }) => Door::Shut { for_ms },
            Some(Effect::Events { .. } | Effect::LieCached(_)) => return,
            _ => Door::Open,
        };
        self.turn(wanted);
    }

    /// Moves the door, unless the server stops.
    pub(crate) fn turn(&self, wanted: Door) {
        self.door.send_if_modified(|door| {
            let changes = *door != Door::Closed && *door != wanted;
            if changes {
                *door = wanted;
            }
            changes
        });
    }

    /// What the next generation request meets.
    pub(crate) fn take_fault(&self) -> Option<Effect> {
        self.faults.lock().take()
    }

    /// What the next reply tells of its cached tokens, if not the truth.
    pub(crate) fn take_lie(&self) -> Option<Lie> {
        self.faults.lock().take_lie()
    }

    /// True while every path answers that the engine is scaling.
    pub(crate) fn scales(&self) -> bool {
        self.faults.lock().scales()
    }

    /// Sixteen hex digits that no other request of this engine has.
    pub(crate) fn next_id(&self) -> String {
        format!("{:016x}", self.ids.lock().u64(..))
    }
}

fn first_fault(text: &str) -> Result<Option<Fault>, Error> {
    let fault = Wish::parse(text).and_then(|wish| wish.fault());
    fault.map_err(|why| Error::Config { field: "faults", reason: format!("hold `{text}`: {why}") })
}

fn load(engine: &Engine) -> f64 {
    let scheduler = engine.scheduler();
    let (running, waiting) = (scheduler.running() as f64, scheduler.waiting() as f64);
    running + waiting + waiting * PRESSURE * (scheduler.cache().usage() - 0.5).max(0.0)
}

/// The address under which others find what listens on `ip`.
fn reachable(ip: IpAddr) -> String {
    match ip {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Whole seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn models(config: &SimConfig, served: &[String], ids: &mut fastrand::Rng) -> String {
    let (created, max) = (unix_seconds(), config.engine.max_model_len);
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let root = json(&config.model);
    let cards: Vec<String> = served
        .iter()
        .map(|name| {
            let (id, permission) = (json(name), ids.u64(..));
            format!(
                r#"{{"id":{id},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":null,"max_model_len":{max},"permission":[{{"id":"modelperm-{permission:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#
            )
        })
        .collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, cards.join(","))
}
