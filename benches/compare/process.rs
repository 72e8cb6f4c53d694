//! Processes: started, told to go, looked at, ended.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A role says that it can be used.
pub fn say_ready() {
    println!("ready");
}

/// A role waits until it shall begin.
pub fn await_go() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// A process that ends with this.
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
}

impl Running {
    /// Starts it. Its output goes where ours goes, but for that of roles.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
        let input = child.stdin.take();
        Self { child, input }
    }

    /// Starts a role, and waits until it says that it is ready.
    pub fn start_ready(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "{command:?}");
        Self { child, input }
    }

    /// Ends its waiting.
    pub fn go(&mut self) {
        if let Some(input) = &mut self.input {
            input.write_all(b"go\n").unwrap();
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// This program in another role.
pub fn role(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command
}

/// A process and its children, in microseconds of CPU so far.
pub fn cpu(pid: u32) -> f64 {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0.0 };
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // USER_HZ is 100 wherever Linux runs.
    let own = ticks * 10_000.0;
    own + children(pid).into_iter().map(cpu).sum::<f64>()
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_thread = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).ok();
    let text: Vec<String> = threads.flatten().filter_map(of_thread).collect();
    text.iter().flat_map(|text| text.split_whitespace()).filter_map(|child| child.parse().ok()).collect()
}

/// The first process below this one whose name begins so.
pub fn descendant(pid: u32, name: &str) -> Option<u32> {
    let is_it = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(name));
    children(pid).into_iter().find_map(|child| if is_it(child) { Some(child) } else { descendant(child, name) })
}

/// Of the whole machine, in microseconds.
pub fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().next().unwrap().split_whitespace().skip(1).take(8);
    let fields: Vec<f64> = line.map(|field| field.parse().unwrap()).collect();
    (fields.iter().sum::<f64>() - fields[3] - fields[4]) * 10_000.0
}

/// The most memory that it had resident, in MiB.
pub fn peak(pid: u32) -> f64 {
    memory(pid, "VmHWM:")
}

/// What it has resident now.
pub fn resident(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Asks until there is something.
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "this never came true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The body of a GET; none if it is not answered 200.
pub fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    // 1.0: nobody answers in chunks then.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut input = BufReader::new(stream);
    let (mut line, mut status, mut length) = (String::new(), String::new(), 0);
    while input.read_line(&mut line).ok()? > 2 {
        if status.is_empty() {
            status.clone_from(&line);
        }
        let lower = line.to_ascii_lowercase();
        length = lower.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().unwrap());
        line.clear();
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    status.contains(" 200 ").then(|| String::from_utf8_lossy(&body).into_owned())
}

/// Whether a tool is there; says so if not.
pub fn has(tool: &str, what: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|folder| Path::new(&folder).join(tool).exists());
    if !there {
        eprintln!("LEFT OUT: {what}; {tool} is not installed");
    }
    there
}

/// What a command prints, in one line.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("?").trim().to_owned()
}
