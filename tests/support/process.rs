//! The real process: started with a folder of manifests and a data folder of its own, killed with its test.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, Answer};
use super::{eventually, rabbitmq, seconds};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_stagepost");
/// From the start to readiness. Generous: debug builds, all tests side by side on two cores.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How to start it.
#[derive(Debug, Default)]
pub struct Setup {
    manifests: String,
    folder: Option<PathBuf>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    data: Option<PathBuf>,
    program: Vec<String>,
}

impl Setup {
    /// These manifests.
    pub fn manifests(yaml: impl Into<String>) -> Self {
        Self { manifests: yaml.into(), ..Self::default() }
    }

    /// A folder of `examples/`, as it stands.
    pub fn example(name: &str) -> Self {
        Self::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name))
    }

    /// A folder of manifests, copied, so that a test may change them.
    pub fn folder(path: &Path) -> Self {
        Self { folder: Some(path.to_owned()), ..Self::default() }
    }

    /// Where a `serviceRef` points.
    #[must_use]
    pub fn service(self, name: &str, url: &str) -> Self {
        self.arg("--service").arg(&format!("{name}={url}"))
    }

    /// Another data folder than one that is deleted at the end.
    #[must_use]
    pub fn data(self, folder: PathBuf) -> Self {
        Self { data: Some(folder), ..self }
    }

    /// One more argument of `run`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Other words before `run` than the program under test: another build of it, or a tool that it runs in.
    #[must_use]
    pub fn program(self, words: Vec<String>) -> Self {
        Self { program: words, ..self }
    }

    /// Starts it and waits until it is ready.
    pub fn start(mut self) -> Stagepost {
        let on_broker =
            rabbitmq::is_everywhere() && !self.args.iter().any(|arg| arg == "--amqp" || arg == "--embedded");
        if on_broker {
            self = self.arg("--amqp").arg(&rabbitmq::fresh_virtual_host());
        }
        let dir = TempDir::new().unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        match &self.folder {
            Some(folder) => {
                for entry in std::fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        std::fs::copy(&path, manifests.join(path.file_name().unwrap())).unwrap();
                    }
                }
            }
            None => std::fs::write(manifests.join("stagepost.yaml"), &self.manifests).unwrap(),
        }
        let output = Arc::default();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process =
            Stagepost { setup: self, on_broker, dir, output, child: None, listen: nowhere, admin: nowhere };
        process.launch();
        process
    }
}

/// A running process and its folders.
pub struct Stagepost {
    setup: Setup,
    /// Only because this whole run of the tests is.
    on_broker: bool,
    dir: TempDir,
    output: Arc<Mutex<Vec<String>>>,
    child: Option<Child>,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Stagepost {
    /// Where the routes are.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where `/status` is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The folder of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// Writes one manifest file, as an editor would: a new file, then renamed over the old one.
    pub fn write(&self, file: &str, yaml: &str) {
        let new = self.dir.path().join("new.yaml");
        std::fs::write(&new, yaml).unwrap();
        std::fs::rename(new, self.manifests().join(file)).unwrap();
    }

    /// Replaces a text that stands once or more in a manifest file.
    #[track_caller]
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let yaml = std::fs::read_to_string(self.manifests().join(file)).unwrap();
        assert!(yaml.contains(from), "`{from}` is not in {file}");
        self.write(file, &yaml.replace(from, to));
    }

    /// Removes a manifest file.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM only.
    pub fn signal_term(&self) {
        signal(self.pid(), "TERM");
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.signal_term();
        self.await_exit(within)
    }

    /// Waits for the end.
    #[track_caller]
    pub fn await_exit(&mut self, within: Duration) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let status = eventually("the process has ended", within, || child.try_wait().unwrap());
        self.child = None;
        status
    }

    /// Starts it again on the same data. The ports are new.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it is still running");
        let from = self.output.lock().unwrap().len();
        let mut words = self.setup.program.iter().map(String::as_str);
        let mut command = Command::new(words.next().unwrap_or(BINARY));
        command.args(words);
        let data = self.setup.data.clone().unwrap_or_else(|| self.dir.path().join("data"));
        command.arg("run").arg(self.manifests()).arg("--data").arg(data);
        for (flag, default) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0"), ("--log-format", "text")] {
            if !self.setup.args.iter().any(|arg| arg == flag) {
                command.args([flag, default]);
            }
        }
        command.args(&self.setup.args).env("NO_COLOR", "1");
        command.envs(self.setup.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        collect(child.stdout.take().unwrap(), &self.output);
        collect(child.stderr.take().unwrap(), &self.output);
        self.child = Some(child);
        self.await_ready(from);
        if self.on_broker {
            self.await_stores();
        }
    }

    /// The embedded store is there at once. A broker is connected to, and queues that are new have to settle.
    fn await_stores(&self) {
        let connecting = |item: &Value| {
            let conditions = item["status"]["conditions"].as_array().into_iter().flatten();
            conditions.filter(|one| one["type"] == "Ready").any(|one| {
                one["status"] != "True" && (one["reason"] == "Connecting" || one["reason"] == "NotConnected")
            })
        };
        eventually("all stores are connected", READY_WITHIN, || {
            let all = self.get("/status").json();
            (!all["items"].as_array().into_iter().flatten().any(connecting)).then_some(())
        });
    }

    /// Kills it (if it runs) and starts it again.
    pub fn restart(&mut self) {
        self.kill9();
        self.launch();
    }

    fn await_ready(&mut self, from: usize) {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = self.log()[from..].to_vec();
            assert!(ended.is_none(), "it ended at the start: {ended:?}\n{}", log.join("\n"));
            let found = |word: &str| log.iter().find_map(|line| address_after(line, word));
            if let Some(admin) = found("admin") {
                self.admin = admin;
                if http::once(admin, "GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200) {
                    let listen = self.get("/status").json()["listen"].as_str().map(str::to_owned);
                    if let Some(listen) = listen.and_then(|text| text.parse().ok()) {
                        self.listen = listen;
                        return;
                    }
                }
            }
            assert!(Instant::now() < deadline, "not ready within {READY_WITHIN:?}:\n{}", log.join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it printed so far, over all starts.
    pub fn log(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    /// Waits for a printed line that holds all these words.
    #[track_caller]
    pub fn await_log(&self, words: &[&str], within: Duration) -> String {
        eventually(&format!("a line with {words:?} is printed"), within, || {
            self.log().into_iter().find(|line| words.iter().all(|word| line.contains(word)))
        })
    }

    /// POST on a connection of its own.
    #[track_caller]
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        http::once(self.listen, "POST", path, &headers, body.as_ref()).expect("the route answers")
    }

    /// GET at the admin port.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        http::once(self.admin, "GET", path, &[], b"").expect("the admin port answers")
    }

    /// `status` of one object.
    #[track_caller]
    pub fn status(&self, kind: &str, name: &str) -> Value {
        let all = self.get("/status").json();
        let item = all["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|item| item["kind"] == kind && item["metadata"]["name"] == name);
        item.map(|item| item["status"].clone()).unwrap_or_default()
    }

    /// `status` of a `ForwardingProcessor`.
    #[track_caller]
    pub fn processor(&self, name: &str) -> Value {
        self.status("ForwardingProcessor", name)
    }

    /// Waits until the status of an object is as wanted.
    #[track_caller]
    pub fn await_status(&self, kind: &str, name: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + within;
        loop {
            let status = self.status(kind, name);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{kind} {name} after {within:?}: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a processor's state is this.
    #[track_caller]
    pub fn await_state(&self, processor: &str, state: &str, within: Duration) -> Value {
        self.await_status("ForwardingProcessor", processor, within, |status| status["state"] == state)
    }

    /// Messages ready in the queue of a store.
    #[track_caller]
    pub fn depth(&self, store: &str) -> u64 {
        let status = self.status("MessageStore", store);
        status["messages"].as_u64().unwrap_or_else(|| panic!("MessageStore {store} has no `messages`: {status:#}"))
    }

    /// Waits until a store holds this many messages.
    #[track_caller]
    pub fn await_depth(&self, store: &str, count: u64, within: Duration) {
        self.await_status("MessageStore", store, within, |status| status["messages"] == count);
    }

    /// The sum of a counter or gauge over all label sets that hold these labels (`name="value"`).
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> i64 {
        let text = self.get("/metrics").text();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
            .sum()
    }

    /// A figure of `/proc/PID/status` in KiB, for example `VmHWM`.
    pub fn memory(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(figure)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Another command of the same binary, at this process's admin port.
    pub fn command(&self, args: &[&str]) -> Done {
        run(&[args, &["--admin", &self.admin.to_string()]].concat())
    }

    /// `stagepost reactivate NAME`; it must succeed.
    #[track_caller]
    pub fn reactivate(&self, processor: &str) {
        let done = self.command(&["reactivate", processor]);
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    }
}

impl Drop for Stagepost {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let last = log.len().saturating_sub(300);
            eprintln!("--- the process printed (last lines):\n{}\n---", log[last..].join("\n"));
        }
    }
}

/// Sends a signal, by its name without SIG.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// Runs the binary to its end, at most 30 s.
#[track_caller]
pub fn run(args: &[&str]) -> Done {
    let mut child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + seconds(30);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("`stagepost {}` did not end within 30 s", args.join(" "));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Done { code: status.code().unwrap_or(-1), stdout: out.join().unwrap(), stderr: reader.join().unwrap() }
}

fn collect(stream: impl Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) {
    let into = into.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            into.lock().unwrap().push(line);
        }
    });
}

/// The first `ADDRESS:PORT` in a line behind a word.
fn address_after(line: &str, word: &str) -> Option<SocketAddr> {
    let at = line.find(word)?;
    line[at..]
        .split(|part: char| !(part.is_ascii_digit() || part == '.' || part == ':'))
        .find_map(|part| part.trim_matches(['.', ':']).parse().ok())
}
