//! Private RabbitMQ brokers for tests: any supported version, started, killed, paused, restarted, reconfigured.
//!
//! Each broker runs from a root folder that `tests/rabbitmq/install` makes, in a data folder of its own, on loopback.

// Each test binary uses the part that it needs.
#![allow(dead_code)]

use std::cell::RefCell;
use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Runs in the broker's root. 3.10 reads its memory from /proc; mounted in a namespace of its own, it leaves nothing
/// behind.
const TOOL: &str = r#"exec unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$0" "$@""#;

/// The same, in a process namespace that ends when our end of its standard input does: with the test, however it ends.
const SERVER: &str = r#"
unshare --mount --pid --fork --kill-child sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$0" "$@" &
cat >/dev/null
kill -9 $!
"#;

/// A broker from its first start to the end of the test, over restarts.
pub(crate) struct Rabbit {
    root: PathBuf,
    /// The data folder as the broker sees it, inside `root`.
    folder: String,
    /// Where it listens, on 127.0.0.1.
    pub(crate) port: u16,
    node: String,
    distribution_port: u16,
    name_server: u16,
    child: Option<Child>,
    turn: Option<Arc<Turn>>,
}

/// The version that this run of the tests is for: `STAGEPOST_TEST_RABBITMQ`, or none (then tests that need a broker
/// are left out, and say so).
pub(crate) fn version() -> Option<String> {
    std::env::var("STAGEPOST_TEST_RABBITMQ").ok().filter(|version| !version.is_empty())
}

/// Says once in a process that something was left out. Not by `println!`: that shows only with failures.
pub(crate) fn leave_out(what: &str) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        let _ = writeln!(std::io::stderr(), "left out: {what}; STAGEPOST_TEST_RABBITMQ names a version");
    });
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether tests that say nothing of stores run on a broker (`STAGEPOST_TEST_STORES=rabbitmq`) and not on the embedded
/// store.
pub(crate) fn is_everywhere() -> bool {
    std::env::var("STAGEPOST_TEST_STORES").is_ok_and(|stores| stores == "rabbitmq")
}

/// The URI of a virtual host that nobody else uses, on a broker that all tests of this process share.
pub(crate) fn fresh_virtual_host() -> String {
    static FRESH: Mutex<(Option<Rabbit>, Vec<String>)> = Mutex::new((None, Vec::new()));
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    let mut fresh = FRESH.lock().unwrap();
    let (rabbit, names) = &mut *fresh;
    let rabbit =
        rabbit.get_or_insert_with(|| Rabbit::start(&version().expect("STAGEPOST_TEST_RABBITMQ names a version"), ""));
    if names.is_empty() {
        names.extend((0..16).map(|_| format!("fresh-{}", HANDED_OUT.fetch_add(1, Ordering::Relaxed))));
        rabbit.virtual_hosts(names);
    }
    format!("amqp://guest:guest@127.0.0.1:{}/{}", rabbit.port, names.pop().unwrap())
}

/// So many tests with brokers run at once, less one for the broker that is shared. More would be starved, and what is
/// timed or counted then says something of the machine.
const AT_ONCE: usize = 7;

/// A test's right to work with brokers.
#[derive(Debug)]
pub(crate) struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(AT_ONCE), Condvar::new());

impl Turn {
    /// Waits for one; a thread that has one already keeps it.
    pub(crate) fn wait() -> Arc<Self> {
        thread_local! {
            static MINE: RefCell<Weak<Turn>> = const { RefCell::new(Weak::new()) };
        }
        MINE.with_borrow_mut(|mine| {
            mine.upgrade().unwrap_or_else(|| {
                let (free, changed) = &TURNS;
                let mut free = changed.wait_while(free.lock().unwrap(), |free| *free == 0).unwrap();
                *free -= 1;
                let turn = Arc::new(Self);
                *mine = Arc::downgrade(&turn);
                turn
            })
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (free, changed) = &TURNS;
        *free.lock().unwrap() += 1;
        changed.notify_one();
    }
}

impl Rabbit {
    /// Starts a broker of a version that `tests/rabbitmq/install` knows. `config` is added to its `rabbitmq.conf`.
    pub(crate) fn start(version: &str, config: &str) -> Self {
        let turn = Turn::wait();
        let mut rabbit = Self::prepare(version, config);
        rabbit.turn = Some(turn);
        rabbit.run();
        rabbit
    }

    /// Starts one with files of its own beside its data; `config` is told where they are.
    pub(crate) fn with_files(version: &str, files: &[(&str, Vec<u8>)], config: impl Fn(&str) -> String) -> Self {
        let turn = Turn::wait();
        let mut rabbit = Self::prepare(version, "");
        rabbit.turn = Some(turn);
        for (name, content) in files {
            fs::write(rabbit.inside(name), content).unwrap();
        }
        rabbit.configure(&config(&rabbit.folder));
        rabbit.run();
        rabbit
    }

    /// Makes its folder, and starts nothing.
    fn prepare(version: &str, config: &str) -> Self {
        let root = install(version);
        let name_server = name_server(&root);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = format!("/var/tmp/stagepost-{}-{number}", std::process::id());
        let port = free_port();
        let distribution_port = free_port();
        let node = format!("stagepost-{}-{number}@localhost", std::process::id());
        let rabbit = Self { root, folder, port, node, distribution_port, name_server, child: None, turn: None };
        remove_leftovers(&rabbit.root);
        let inside = rabbit.inside("");
        fs::create_dir_all(inside.join("db")).unwrap();
        fs::create_dir_all(inside.join("log")).unwrap();
        fs::write(inside.join("enabled_plugins"), "[].\n").unwrap();
        // Nodes of one cluster, and the tools, share a secret.
        let cookie = inside.join(".erlang.cookie");
        fs::write(&cookie, "stagepost-tests").unwrap();
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).unwrap();
        rabbit.configure(config);
        rabbit
    }

    fn configure(&self, config: &str) {
        let always = format!("listeners.tcp.1 = 127.0.0.1:{}\nloopback_users = none\n", self.port);
        fs::write(self.inside("rabbitmq.conf"), format!("{always}{config}\n")).unwrap();
    }

    /// `amqp://` with the default user and virtual host.
    pub(crate) fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts it again after a kill, on the same data and port.
    pub(crate) fn run(&mut self) {
        self.launch();
        self.await_ready();
    }

    /// The same, without waiting until it is ready.
    fn launch(&mut self) {
        assert!(self.child.is_none(), "the broker is running");
        let log = fs::File::create(self.inside("output")).unwrap();
        let child = self
            .command("rabbitmq-server")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn await_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let output = self.output();
            if output.contains("Server startup complete") && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            let failed = output.contains("BOOT FAILED");
            assert!(!failed && Instant::now() < deadline, "the broker did not start:\n{output}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What it has logged since it was started last.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.inside("output")).unwrap_or_default()
    }

    /// SIGKILL to the Erlang machine, as a crash does.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    /// SIGSTOP or SIGCONT to the Erlang machine.
    pub(crate) fn pause(&self, paused: bool) {
        self.signal(if paused { "STOP" } else { "CONT" });
    }

    /// Runs `rabbitmqctl`, and returns what it printed.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.command("rabbitmqctl").arg("-q").arg("-n").arg(&self.node).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Evaluates an Erlang expression on the node.
    pub(crate) fn eval(&self, expression: &str) -> String {
        self.ctl(&["eval", expression])
    }

    /// Ready messages and those in consumers' hands of a queue; `None` if there is no such queue.
    pub(crate) fn queue(&self, virtual_host: &str, name: &str) -> Option<(u64, u64)> {
        let columns = ["name", "messages_ready", "messages_unacknowledged"];
        let listed = self.ctl(&[&["list_queues", "-p", virtual_host, "--no-table-headers"], &columns[..]].concat());
        listed.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let count = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0);
            (words.next() == Some(name)).then(|| (count(words.next()), count(words.next())))
        })
    }

    /// A virtual host of one test's own, with all rights for guest. Returns its URI.
    pub(crate) fn virtual_host(&self, name: &str) -> String {
        self.ctl(&["add_vhost", name]);
        self.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
        format!("amqp://guest:guest@127.0.0.1:{}/{name}", self.port)
    }

    /// Several virtual hosts at once: each call of the tools takes a second.
    fn virtual_hosts(&self, names: &[String]) {
        let names: Vec<String> = names.iter().map(|name| format!("<<\"{name}\">>")).collect();
        self.eval(&format!(
            "[begin rabbit_vhost:add(V, <<\"tests\">>), rabbit_auth_backend_internal:set_permissions(\
             <<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"tests\">>) end || V <- [{}]].",
            names.join(",")
        ));
    }

    fn signal(&self, signal: &str) {
        for pid in self.processes() {
            Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
        }
    }

    /// The Erlang machine: the process of ours whose command line names our node.
    fn processes(&self) -> Vec<u32> {
        let name = self.node.split('@').next().unwrap();
        // It stands in the paths of its files. Another broker's name may begin with ours.
        let is_ours = |line: &str| {
            line.match_indices(name)
                .any(|(at, found)| !line[at + found.len()..].starts_with(|next: char| next.is_ascii_digit()))
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    line.contains("beam") && is_ours(&line)
                })
            })
            .collect()
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(self.folder.trim_start_matches('/')).join(path)
    }

    fn command(&self, program: &str) -> Command {
        let folder = &self.folder;
        let mut command = Command::new("sh");
        command
            .args(["-c", if program == "rabbitmq-server" { SERVER } else { TOOL }])
            .arg(&self.root)
            .args(["env", "-i", "LANG=C.UTF-8", "RABBITMQ_LOGS=-", "ERL_EPMD_ADDRESS=127.0.0.1"])
            .arg(format!("ERL_EPMD_PORT={}", self.name_server))
            .arg("PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .arg("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}")
            .arg(format!("HOME={folder}"))
            .arg(format!("RABBITMQ_NODENAME={}", self.node))
            .arg(format!("RABBITMQ_DIST_PORT={}", self.distribution_port))
            .arg(format!("RABBITMQ_MNESIA_BASE={folder}/db"))
            .arg(format!("RABBITMQ_LOG_BASE={folder}/log"))
            .arg(format!("RABBITMQ_PID_FILE={folder}/pid"))
            .arg(format!("RABBITMQ_ENABLED_PLUGINS_FILE={folder}/enabled_plugins"))
            .arg(format!("RABBITMQ_CONFIG_FILE={folder}/rabbitmq.conf"))
            .arg(format!("/usr/lib/rabbitmq/bin/{program}"));
        command
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.pause(false);
        self.kill();
        fs::remove_dir_all(self.inside("")).ok();
    }
}

/// Makes the root folder if it is missing (a minute), and returns it.
fn install(version: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rabbitmq/install");
    let output = Command::new(script).arg(version).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Removes the folders of brokers whose test process has ended without dropping them.
fn remove_leftovers(root: &Path) {
    for entry in fs::read_dir(root.join("var/tmp")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("stagepost-")?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// The name server that Erlang nodes find each other by: one for all brokers of this process, on a port of its own, so
/// that none of them takes it along when it is killed. It ends with the process.
fn name_server(root: &Path) -> u16 {
    static SERVER: OnceLock<(u16, Mutex<Child>)> = OnceLock::new();
    let (port, _) = SERVER.get_or_init(|| {
        let port = free_port();
        let child = Command::new("sh")
            .args(["-c", r#"chroot "$0" epmd -address 127.0.0.1 -port "$1" & cat >/dev/null; kill -9 $!"#])
            .arg(root)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "epmd did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        (port, Mutex::new(child))
    });
    *port
}

/// A port below the range that the kernel gives to outgoing connections, so that it stays free while its broker is
/// down.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).unwrap_or(0);
    loop {
        let port = 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Three nodes of one cluster. Quorum queues that are declared while all are up have a member on each.
pub(crate) struct Cluster {
    /// The nodes, each of which can be killed, paused, restarted.
    pub(crate) nodes: Vec<Rabbit>,
    /// Where the test whose turn it is works.
    virtual_host: String,
}

impl Cluster {
    /// Starts three nodes and waits until each sees the others. `config` is added to the `rabbitmq.conf` of each.
    pub(crate) fn start(version: &str, config: &str) -> Self {
        let mut nodes: Vec<Rabbit> = (0..3).map(|_| Rabbit::prepare(version, "")).collect();
        let names = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| format!("cluster_formation.classic_config.nodes.{} = {}\n", index + 1, node.node));
        let discovery: String =
            std::iter::once("cluster_formation.peer_discovery_backend = classic_config\n".to_owned())
                .chain(names)
                .collect();
        for node in &nodes {
            node.configure(&format!("{discovery}{config}"));
        }
        nodes.iter_mut().for_each(Rabbit::launch);
        nodes.iter_mut().for_each(Rabbit::await_ready);
        let cluster = Self { nodes, virtual_host: "%2f".to_owned() };
        cluster.await_complete();
        cluster
    }

    /// A virtual host for the next test.
    pub(crate) fn next_turn(&mut self) {
        self.virtual_host = format!("turn-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.nodes[0].virtual_host(&self.virtual_host);
    }

    /// `amqp://` with the address of one node only.
    pub(crate) fn uri_of(&self, index: usize) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{}", self.nodes[index].port, self.virtual_host)
    }

    /// `amqp://` with the addresses of all nodes, the first one first.
    pub(crate) fn uri(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("amqp://guest:guest@{}/{}", hosts.join(","), self.virtual_host)
    }

    /// Waits until each node runs and sees all others.
    pub(crate) fn await_complete(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for node in &self.nodes {
            while node.eval("length([N || N <- [node() | nodes()], rabbit:is_running(N)]).").trim() != "3" {
                assert!(Instant::now() < deadline, "the nodes did not find each other");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    /// Which node leads a quorum queue of this turn.
    pub(crate) fn leader(&self, asked: usize, queue: &str) -> usize {
        let virtual_host = &self.virtual_host;
        let name = self.nodes[asked].eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{virtual_host}\">>, queue, <<\"{queue}\">>)), \
             {{ok, _, {{_, Leader}}}} = ra:members(amqqueue:get_pid(Q)), Leader."
        ));
        let name = name.trim().trim_matches('\'');
        self.nodes.iter().position(|node| node.node == name).unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// Moves the lead of a quorum queue of this turn.
    pub(crate) fn transfer(&self, queue: &str, to: usize) {
        let virtual_host = &self.virtual_host;
        self.nodes[to].eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{virtual_host}\">>, queue, <<\"{queue}\">>)), \
             rabbit_quorum_queue:transfer_leadership(Q, node())."
        ));
    }

    /// Cuts one node off from the others, or lets it find them again. Clients still reach it.
    pub(crate) fn cut_off(&self, index: usize, cut: bool) {
        let alone = &self.nodes[index];
        let others: Vec<&Rabbit> = self.nodes.iter().filter(|node| node.node != alone.node).collect();
        // Nodes do not talk when each takes the other's secret to be another.
        let cookie = |of: &str| {
            let cookie = if cut { format!("'cut-off-{of}'") } else { "erlang:get_cookie()".to_owned() };
            format!("erlang:set_cookie('{of}', {cookie})")
        };
        for other in &others {
            other.eval(&format!("{}, erlang:disconnect_node('{}').", cookie(&alone.node), alone.node));
            alone.eval(&format!("{}, erlang:disconnect_node('{}').", cookie(&other.node), other.node));
        }
        if !cut {
            for other in &others {
                alone.eval(&format!("net_kernel:connect_node('{}').", other.node));
            }
        }
    }
}
