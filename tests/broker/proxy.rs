//! A TCP proxy before the broker, which can fall silent in one direction, on one of our two connections, or cut all.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{millis, quiet_port};

/// One of our two connections, by the name that it tells the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Publishing,
    Consuming,
    Both,
}

/// As seen from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From us to the broker.
    Up,
    /// From the broker to us.
    Down,
}

/// See the module.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    broker: SocketAddr,
    /// What is not passed on now: it stays where it is until it is passed on, or until the connection ends.
    silent: Mutex<Vec<(Which, Way)>>,
    links: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

/// 0: not known yet.
type Kind = Arc<AtomicU8>;

impl Proxy {
    pub(crate) fn start(broker: u16) -> Self {
        let port = quiet_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let shared = Arc::new(Shared {
            broker: SocketAddr::from(([127, 0, 0, 1], broker)),
            silent: Mutex::default(),
            links: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                // No broker: the client is told so by a reset.
                let Ok(server) = TcpStream::connect(accepting.broker) else { continue };
                accepting.link(client, server);
            }
        });
        Self { port, shared }
    }

    /// A broker's URI, by way of this proxy.
    pub(crate) fn uri(&self, direct: &str) -> String {
        direct.replacen(&self.shared.broker.to_string(), &format!("127.0.0.1:{}", self.port), 1)
    }

    /// Passes nothing on any more.
    pub(crate) fn silence(&self, which: Which, way: Way) {
        self.shared.silent.lock().unwrap().push((which, way));
    }

    /// Passes on everything again, also what was held back.
    pub(crate) fn speak(&self) {
        self.shared.silent.lock().unwrap().clear();
    }

    /// Ends all connections at once.
    pub(crate) fn cut(&self) {
        for link in self.shared.links.lock().unwrap().drain(..) {
            let _ = link.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.cut();
    }
}

impl Shared {
    fn link(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let kind = Kind::default();
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        self.links.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let ends = [(client.try_clone().unwrap(), server.try_clone().unwrap(), Way::Up), (server, client, Way::Down)];
        for (from, to, way) in ends {
            let (shared, kind) = (self.clone(), kind.clone());
            std::thread::spawn(move || {
                let _ = shared.pass(&from, &to, way, &kind);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
    }

    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream, way: Way, kind: &Kind) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if way == Way::Up && kind.load(Ordering::SeqCst) == 0 {
                kind.store(named(&buffer[..count]), Ordering::SeqCst);
            }
            while self.is_silent(way, kind) && !self.over.load(Ordering::SeqCst) {
                std::thread::sleep(millis(2));
            }
            to.write_all(&buffer[..count])?;
        }
    }

    fn is_silent(&self, way: Way, kind: &Kind) -> bool {
        let kind = kind.load(Ordering::SeqCst);
        self.silent.lock().unwrap().iter().any(|(which, silent)| {
            *silent == way
                && match which {
                    Which::Both => true,
                    Which::Publishing => kind == 1,
                    Which::Consuming => kind == 2,
                }
        })
    }
}

/// Which connection begins with these bytes, by the name in its properties.
fn named(bytes: &[u8]) -> u8 {
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    if has(b" publish") {
        1
    } else if has(b" consume") {
        2
    } else {
        0
    }
}
