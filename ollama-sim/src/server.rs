//! Starts and stops one simulated Ollama.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::config::{Config, EngineKind};
use crate::engine::Engine;
use crate::engine::llama::Llama;
use crate::engine::scripted::Pace;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::models::{Models, UnknownOrigin};
use crate::net::{Connection, Listener};
use crate::simulator::Simulator;
use crate::slots::Slots;
use crate::stats::{Counters, Stats};

/// The reasons why a simulator cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The simulator cannot listen on the address.
    Listen(SocketAddr, io::Error),
    /// An alias names no model.
    Alias(UnknownOrigin),
    /// There is no client for the llama.cpp server.
    Client(reqwest::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::Alias(error) => error.fmt(f),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// A running simulator; dropping it closes every connection.
pub struct Sim {
    address: SocketAddr,
    state: Arc<Simulator>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Sim {
    /// Starts to listen and to answer.
    ///
    /// # Errors
    /// Fails where the address is taken, and where an alias names no model.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let models = Models::new(&config.models, &config.aliases).map_err(StartError::Alias)?;
        let engine = match config.engine {
            EngineKind::Scripted => Engine::Scripted(Pace {
                tokens: config.tokens,
                rate: config.rate,
                first: Duration::from_millis(config.first_token_ms),
                say: config.say.as_deref().map(Arc::from),
            }),
            EngineKind::Llama => {
                Engine::Llama(Llama::new(&config.llama_url).map_err(StartError::Client)?)
            }
        };
        let cannot = |error| StartError::Listen(config.listen, error);
        let listener = TcpListener::bind(config.listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Simulator {
            slots: Slots::new(config.slots, config.queue, Arc::clone(&counters)),
            faults: Faults::default(),
            journal: Journal::default(),
            engine,
            models,
            counters,
            config,
        });
        let stop = CancellationToken::new();
        let listener = Listener::new(listener, stop.clone());
        let service =
            api::router(Arc::clone(&shared)).into_make_service_with_connect_info::<Connection>();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                served = axum::serve(listener, service) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "stopped serving");
                    }
                }
            }
        });
        Ok(Self { address, state: shared, stop, serving })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns `http://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the statistics.
    pub fn stats(&self) -> Stats {
        self.state.counters.read()
    }

    /// Ends like a killed process: every connection is closed in mid-stream, and the port is free
    /// once this returns.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // The only failure would be a panic in the accept loop, which has been logged.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
