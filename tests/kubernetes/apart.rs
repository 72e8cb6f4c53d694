//! A controller of a test's own: a process outside of the cluster, whose every request to the API server is seen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::cluster::{SYSTEM, image, kubectl, run};
use crate::support::process::BINARY;
use crate::support::{eventually, http, seconds};

/// When the controller dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// Not by us.
    Never,
    /// At its write of this number, counted from 1: the API server does not get it.
    Before(usize),
    /// The same, but the API server gets it: the controller never hears the answer.
    After(usize),
}

/// What the proxy sees and does.
struct Seen {
    /// Method and path of each request.
    requests: Mutex<Vec<String>>,
    death: Mutex<Death>,
    /// Of the controller that lives now.
    writes: AtomicUsize,
    /// The controller is to be killed now.
    dead: AtomicBool,
    upstream: SocketAddr,
}

/// The way of a controller to the API server; nobody else looks after objects meanwhile.
pub(crate) struct Apart {
    seen: Arc<Seen>,
    proxy: SocketAddr,
    kubectl_proxy: Child,
    kubeconfig: tempfile::NamedTempFile,
}

impl Apart {
    /// Ends the controller of the cluster for as long as this is there.
    pub(crate) fn start() -> Self {
        kubectl(&["scale", "-n", SYSTEM, "deployment/stagepost-controller", "--replicas=0"]);
        eventually("the cluster's controller is gone", seconds(60), || {
            super::cluster::list(SYSTEM, "pods", "app.kubernetes.io/component=controller").is_empty().then_some(())
        });
        let mut kubectl_proxy =
            Command::new("kubectl").args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(kubectl_proxy.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let upstream = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            death: Mutex::new(Death::Never),
            writes: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            upstream,
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let accepting = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), seen) = (stream, accepting.clone()) else { return };
                std::thread::spawn(move || drop(seen.pass(&stream)));
            }
        });
        let mut kubeconfig = tempfile::NamedTempFile::new().unwrap();
        write!(
            kubeconfig,
            "apiVersion: v1\nkind: Config\ncurrent-context: proxy\nusers: []\n\
             clusters: [{{name: proxy, cluster: {{server: \"http://{proxy}\"}}}}]\n\
             contexts: [{{name: proxy, context: {{cluster: proxy, user: \"\"}}}}]\n"
        )
        .unwrap();
        Self { seen, proxy, kubectl_proxy, kubeconfig }
    }

    /// A controller that looks after one namespace.
    pub(crate) fn controller(&self, namespace: &str, death: Death) -> Controller {
        *self.seen.death.lock().unwrap() = death;
        self.seen.writes.store(0, Ordering::SeqCst);
        self.seen.dead.store(false, Ordering::SeqCst);
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(BINARY)
            .args([
                "--log-format",
                "text",
                "--log-level",
                "error",
                "controller",
                "--image",
                &image(),
                "--image-pull-policy",
                "Never",
            ])
            .args(["--namespaces", namespace, "--own-namespace", SYSTEM, "--listen", &listen.to_string()])
            .env("KUBECONFIG", self.kubeconfig.path())
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Controller { child, seen: self.seen.clone(), listen }
    }

    /// The requests since the last call: method and path of each.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.requests.lock().unwrap())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.kubectl_proxy.kill();
        let _ = self.kubectl_proxy.wait();
        let _ = TcpStream::connect(self.proxy);
        // Not by what panics: a test that fails is told first.
        run("kubectl", &["scale", "-n", SYSTEM, "deployment/stagepost-controller", "--replicas=1"], "");
        let back = ["rollout", "status", "-n", SYSTEM, "deployment/stagepost-controller", "--timeout=120s"];
        run("kubectl", &back, "");
    }
}

/// A running controller; killed with its handle.
pub(crate) struct Controller {
    child: Child,
    seen: Arc<Seen>,
    /// Metrics and probes.
    pub(crate) listen: SocketAddr,
}

impl Controller {
    /// Kills it if it has come to its death. False: it lives.
    #[track_caller]
    pub(crate) fn is_dead(&mut self) -> bool {
        let dead = self.seen.dead.load(Ordering::SeqCst);
        if dead {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        } else {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the controller ended by itself: {ended:?}");
        }
        dead
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    /// Passes requests on as they come; what is answered goes back unread.
    fn pass(&self, client: &TcpStream) -> std::io::Result<()> {
        let mut upstream = TcpStream::connect(self.upstream)?;
        let (mut back, mut to_client) = (upstream.try_clone()?, client.try_clone()?);
        let answers = std::thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut to_client);
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
        let mut requests = BufReader::new(client.try_clone()?);
        while let Some((line, headers)) = http::read_head(&mut requests)? {
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
            self.requests.lock().unwrap().push(format!("{method} {path}"));
            let is_write = method != "GET";
            let death = *self.death.lock().unwrap();
            let number = self.writes.fetch_add(usize::from(is_write), Ordering::SeqCst) + 1;
            if is_write && death == Death::Before(number) {
                self.dead.store(true, Ordering::SeqCst);
            }
            if is_write && self.dead.load(Ordering::SeqCst) {
                break;
            }
            let mut bytes = format!("{line}\r\n").into_bytes();
            for (name, value) in &headers {
                bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
            }
            bytes.extend(b"\r\n");
            let length = http::first(&headers, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            requests.read_exact(&mut body)?;
            bytes.extend(body);
            if is_write && death == Death::After(number) {
                // On a connection of its own, whose answer is read here and goes no further.
                self.dead.store(true, Ordering::SeqCst);
                let mut alone = TcpStream::connect(self.upstream)?;
                alone.write_all(&bytes)?;
                let mut answer = [0; 12];
                alone.read_exact(&mut answer)?;
                break;
            }
            upstream.write_all(&bytes)?;
        }
        let _ = upstream.shutdown(std::net::Shutdown::Both);
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = answers.join();
        Ok(())
    }
}
