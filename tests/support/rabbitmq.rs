//! Private RabbitMQ brokers for tests: any supported version, started, killed, paused, restarted, reconfigured.
//!
//! Each broker runs from a root folder that `tests/rabbitmq/install` makes, in a data folder of its own, on loopback.

// Each test binary uses the part that it needs.
#![allow(dead_code)]

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
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
    child: Option<Child>,
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

impl Rabbit {
    /// Starts a broker of a version that `tests/rabbitmq/install` knows. `config` is added to its `rabbitmq.conf`.
    pub(crate) fn start(version: &str, config: &str) -> Self {
        let root = install(version);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = format!("/var/tmp/stagepost-{}-{number}", std::process::id());
        let port = free_port();
        let distribution_port = free_port();
        let node = format!("stagepost-{}-{number}@localhost", std::process::id());
        let mut rabbit = Self { root, folder, port, node, distribution_port, child: None };
        let inside = rabbit.inside("");
        fs::create_dir_all(inside.join("db")).unwrap();
        fs::create_dir_all(inside.join("log")).unwrap();
        fs::write(inside.join("enabled_plugins"), "[].\n").unwrap();
        let listener = format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n{config}\n");
        fs::write(inside.join("rabbitmq.conf"), listener).unwrap();
        rabbit.run();
        rabbit
    }

    /// `amqp://` with the default user and virtual host.
    pub(crate) fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts it again after a kill, on the same data and port.
    pub(crate) fn run(&mut self) {
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
        self.await_ready();
    }

    fn await_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let output = fs::read_to_string(self.inside("output")).unwrap_or_default();
            if output.contains("Server startup complete") && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            let failed = output.contains("BOOT FAILED");
            assert!(!failed && Instant::now() < deadline, "the broker did not start:\n{output}");
            std::thread::sleep(Duration::from_millis(100));
        }
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

    /// A virtual host of one test's own, with all rights for guest. Returns its URI.
    pub(crate) fn virtual_host(&self, name: &str) -> String {
        self.ctl(&["add_vhost", name]);
        self.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
        format!("amqp://guest:guest@127.0.0.1:{}/{name}", self.port)
    }

    fn signal(&self, signal: &str) {
        for pid in self.processes() {
            Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
        }
    }

    /// The Erlang machine: the process of ours whose command line names our node.
    fn processes(&self) -> Vec<u32> {
        let name = self.node.split('@').next().unwrap();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    line.contains("beam") && line.contains(name)
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

/// Free when asked; a broker that finds it taken fails its start loudly.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
