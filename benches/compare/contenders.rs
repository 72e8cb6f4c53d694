//! Who is measured, and how each is started. All do the same: mandatory, persistent, confirmed publishes to a durable
//! queue; HTTP over kept connections; acknowledgements after an answer of 2xx.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::amqp::{Kind, Queue};
use crate::process::{Running, get, role, wait};
use crate::settings::{ADMIN, BACKEND, LISTEN};

/// Stagepost, the bound, or what people write by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Stagepost,
    Spike,
    Node,
}

/// Where messages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Broker(Kind),
    Embedded,
}

/// How they are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Strict,
    None(usize),
    PerKey(usize),
    /// Without order, all that is there at each tick.
    Poll(usize),
}

impl Who {
    pub const ALL: [Self; 3] = [Self::Stagepost, Self::Spike, Self::Node];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stagepost => "stagepost",
            Self::Spike => "spike",
            Self::Node => "node",
        }
    }
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker(Kind::Quorum) => "quorum",
            Self::Broker(Kind::Classic) => "classic",
            Self::Embedded => "embedded",
        }
    }
}

impl Mode {
    pub fn name(self) -> String {
        match self {
            Self::Strict => "Strict".to_owned(),
            Self::None(concurrency) => format!("concurrency {concurrency}"),
            Self::PerKey(concurrency) => format!("PerKey, concurrency {concurrency}"),
            Self::Poll(concurrency) => format!("polling each second, concurrency {concurrency}"),
        }
    }

    fn concurrency(self) -> usize {
        match self {
            Self::Strict => 1,
            Self::None(concurrency) | Self::PerKey(concurrency) | Self::Poll(concurrency) => concurrency,
        }
    }
}

/// Where contenders find what they need.
pub struct Ground {
    /// HOST:PORT of the broker.
    pub broker: String,
    /// The same, as a URI.
    pub uri: String,
    pub work: PathBuf,
    /// Where the peer and its packages are; none: it is not measured.
    pub node: Option<PathBuf>,
}

/// What a contender is to do.
#[derive(Debug, Clone)]
pub struct Task {
    pub who: Who,
    pub store: Store,
    pub queue: Queue,
    /// Requests are taken, at [`LISTEN`].
    pub ingress: bool,
    /// Messages are delivered in this way, to [`BACKEND`]; at once, or when told to.
    pub forward: Option<(Mode, bool)>,
    pub shape: Shape,
}

/// What only Stagepost is measured with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// Rules that do not take the requests, before the one that does.
    pub more_rules: usize,
    /// Stores with a processor each that have nothing to do.
    pub more_stores: usize,
    /// Over an exchange, by the header `X-Key`: `good` leads to the queue, everything else nowhere.
    pub routed: bool,
}

/// A contender at work.
pub struct Contender {
    task: Task,
    work: PathBuf,
    processes: Vec<Running>,
}

impl Task {
    pub fn start(self, ground: &Ground) -> Contender {
        let mut contender = Contender { task: self, work: ground.work.clone(), processes: Vec::new() };
        let task = &contender.task;
        let Store::Broker(kind) = task.store else {
            contender.stagepost(ground);
            return contender;
        };
        match task.who {
            Who::Stagepost => contender.stagepost(ground),
            Who::Spike => {
                task.queue.declare(kind);
                let Queue { broker, name } = task.queue.clone();
                let ingress = || role(&["spike-ingress", LISTEN, &broker, &name]);
                let forward =
                    |mode: Mode| role(&["spike-forward", BACKEND, &broker, &name, &mode.concurrency().to_string()]);
                contender.roles(ingress, forward);
            }
            Who::Node => {
                task.queue.declare(kind);
                let (folder, name) = (ground.node.clone().unwrap(), task.queue.name.clone());
                let script = |file: &str, address: &str| {
                    let mut command = Command::new("node");
                    command.arg(folder.join(file)).args([address, &ground.uri, &name]);
                    command
                };
                let ingress = || script("ingress.js", LISTEN);
                let forward = |mode: Mode| {
                    let mut command = script("forward.js", BACKEND);
                    command.arg(mode.concurrency().to_string());
                    command
                };
                contender.roles(ingress, forward);
            }
        }
        contender
    }
}

impl Contender {
    /// A process for each role.
    fn roles(&mut self, ingress: impl Fn() -> Command, forward: impl Fn(Mode) -> Command) {
        if self.task.ingress {
            self.processes.push(Running::start_ready(&mut ingress()));
        }
        if let Some((mode, at_once)) = self.task.forward {
            self.processes.push(Running::start_ready(&mut forward(mode)));
            if at_once {
                self.processes.last_mut().unwrap().go();
            }
        }
    }

    /// One process with all that it is to do, as `stagepost run` has it.
    fn stagepost(&mut self, ground: &Ground) {
        self.write_manifest(self.task.forward.is_some_and(|(_, at_once)| !at_once));
        let data = self.work.join("data");
        let _ = std::fs::remove_dir_all(&data);
        let mut command = Command::new(env!("CARGO_BIN_EXE_stagepost"));
        // What nobody can route is warned of.
        let level = if self.task.shape.routed { "error" } else { "warn" };
        command.args(["--log-level", level, "run"]).arg(self.manifest());
        command.args(["--listen", LISTEN, "--admin", ADMIN, "--data"]).arg(data);
        match self.task.store {
            Store::Embedded => command.arg("--embedded"),
            Store::Broker(_) => command.args(["--amqp", &ground.uri]),
        };
        self.processes.push(Running::start(&mut command));
        // A queue that was just made takes nothing for two seconds.
        let ready = |status: String| {
            let not = ["NotConnected", "Connecting", "Settling"];
            (!not.iter().any(|reason| status.contains(reason))).then_some(())
        };
        wait("Stagepost is ready", || get(ADMIN, "/readyz").and_then(|_| ready(get(ADMIN, "/status")?)));
        if self.task.store != Store::Embedded {
            let connected = |text: String| {
                let lines = text.lines().filter(|line| line.starts_with("stagepost_broker_connected"));
                (lines.filter(|line| line.ends_with(" 1")).count() > 0).then_some(())
            };
            wait("Stagepost is connected", || connected(get(ADMIN, "/metrics")?));
        }
    }

    /// Delivery begins.
    pub fn go(&mut self) {
        if self.is_stagepost() {
            self.write_manifest(false);
        } else {
            self.processes.iter_mut().for_each(Running::go);
        }
    }

    fn is_stagepost(&self) -> bool {
        self.task.who == Who::Stagepost
    }

    pub fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(Running::id).collect()
    }

    fn manifest(&self) -> PathBuf {
        self.work.join("manifest.yaml")
    }

    fn write_manifest(&self, suspend: bool) {
        write(&self.manifest(), &manifest(&self.task, suspend));
    }
}

/// As editors do it: whoever reads it reads all of it.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn manifest(task: &Task, suspend: bool) -> String {
    let kind = if let Store::Broker(kind) = task.store { kind.name() } else { "Quorum" };
    let consumers = match task.forward {
        Some((Mode::None(_) | Mode::Poll(_), _)) => "Competing",
        _ => "SingleActive",
    };
    let head = "---\napiVersion: stagepost.dev/v1alpha1\nkind:";
    let Shape { more_rules, more_stores, routed } = task.shape;
    let name = &task.queue.name;
    let mut yaml = format!(
        "{head} MessageStore\nmetadata: {{name: bench}}\nspec:\n  broker: {{secretRef: {{name: none}}}}\n  \
         queue: {{name: {name}, type: {kind}, consumers: {consumers}}}\n"
    );
    if routed {
        let _ = write!(yaml, "  exchange: {{name: {name}, type: Direct}}\n  bindings: [good]\n  routingKey: good\n");
    }
    for number in 0..more_stores {
        let _ = write!(
            yaml,
            "{head} MessageStore\nmetadata: {{name: more-{number}}}\nspec:\n  \
             broker: {{secretRef: {{name: none}}}}\n  queue: {{name: {name}-{number}, type: {kind}}}\n\
             {head} ForwardingProcessor\nmetadata: {{name: more-{number}}}\nspec:\n  \
             storeRef: {{name: more-{number}}}\n  target: {{url: \"http://{BACKEND}/\"}}\n"
        );
    }
    if task.ingress {
        let _ = write!(yaml, "{head} IngressRoute\nmetadata: {{name: in}}\nspec:\n  rules:\n");
        for number in 0..more_rules {
            let _ = writeln!(yaml, "  - {{name: r{number}, path: \"/in/{number}/{{id}}\", storeRef: {{name: bench}}}}");
        }
        let key = if routed { ", routingKey: \"{{ headers['x-key'] }}\"" } else { "" };
        let _ = writeln!(yaml, "  - {{name: post, path: /in, storeRef: {{name: bench}}{key}}}");
    }
    if let Some((mode, _)) = task.forward {
        let ordering = match mode {
            Mode::Strict => "Strict".to_owned(),
            Mode::None(_) => "None".to_owned(),
            Mode::Poll(_) => "None\n  poll: {interval: 1s, batchSize: -1}".to_owned(),
            Mode::PerKey(_) => "PerKey\n  orderingKey: headers['x-key']".to_owned(),
        };
        let _ = write!(
            yaml,
            "{head} ForwardingProcessor\nmetadata: {{name: out}}\nspec:\n  storeRef: {{name: bench}}\n  \
             suspend: {suspend}\n  ordering: {ordering}\n  concurrency: {}\n  \
             target: {{url: \"http://{BACKEND}/\"}}\n  response: {{log: None}}\n",
            mode.concurrency()
        );
    }
    yaml
}
