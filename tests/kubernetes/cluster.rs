//! The cluster and what is installed in it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use crate::support::{alone, beside_others, eventually, seconds};

/// Where the controller is installed.
pub(crate) const SYSTEM: &str = "stagepost-system";

/// A test's turn at the cluster.
pub(crate) enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Whole { _guard: RwLockWriteGuard<'static, ()> },
}

impl Drop for Turn {
    fn drop(&mut self) {
        if std::thread::panicking() && matches!(self, Self::Whole { .. }) {
            println!("--- controller\n{}", controller_log());
            // Whatever it did to the controller, the next test finds it as it should be.
            let _ = std::panic::catch_unwind(|| helm_install(&["--set", "controller.replicas=1"]));
        }
    }
}

/// For a test that runs beside others; `None` if no cluster is there.
pub(crate) fn shared() -> Option<Turn> {
    is_there().then(|| Turn::Shared { _guard: beside_others() })
}

/// For a test that stops or changes what the others stand on, or uses the machine up.
pub(crate) fn whole() -> Option<Turn> {
    is_there().then(|| Turn::Whole { _guard: alone() })
}

/// Whether a cluster is there. Says so once if not.
fn is_there() -> bool {
    static SAID: std::sync::Once = std::sync::Once::new();
    let there = std::env::var("STAGEPOST_TEST_CLUSTER").is_ok_and(|value| !value.is_empty());
    if there {
        install();
    } else {
        SAID.call_once(|| {
            let what = "left out: tests on Kubernetes; STAGEPOST_TEST_CLUSTER says that one is there";
            let _ = writeln!(std::io::stderr(), "{what}");
        });
    }
    there
}

/// A file of the project.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a program printed, and whether it went well.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) ok: bool,
}

/// Runs a program with this on its standard input.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Printed {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run by tests/cluster/cluster exec"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Printed { out: text(&output.stdout), err: text(&output.stderr), ok: output.status.success() }
}

/// `kubectl` that must go well.
#[track_caller]
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    let printed = run("kubectl", arguments, "");
    assert!(printed.ok, "kubectl {arguments:?}: {}{}", printed.out, printed.err);
    printed.out
}

/// What the API server has, or null.
pub(crate) fn get(namespace: &str, kind: &str, name: &str) -> Value {
    let printed = run("kubectl", &["get", "-n", namespace, kind, name, "-o", "json", "--ignore-not-found"], "");
    assert!(printed.ok || printed.err.contains("not found"), "kubectl get {kind} {name}: {}", printed.err);
    serde_json::from_str(&printed.out).unwrap_or_default()
}

/// All objects of a kind with these labels (`a=b,c=d`; may be empty).
pub(crate) fn list(namespace: &str, kind: &str, labels: &str) -> Vec<Value> {
    let printed = kubectl(&["get", "-n", namespace, kind, "-l", labels, "-o", "json"]);
    let listed: Value = serde_json::from_str(&printed).unwrap();
    listed["items"].as_array().cloned().unwrap_or_default()
}

/// The image of this program in the cluster.
pub(crate) fn image() -> String {
    std::env::var("STAGEPOST_TEST_IMAGE").unwrap_or_else(|_| "localhost/stagepost:test".to_owned())
}

/// Installs the chart, or brings what is installed up to date; `more` are further flags of helm.
#[track_caller]
pub(crate) fn helm_install(more: &[&str]) {
    let image = image();
    let (repository, tag) = image.rsplit_once(':').unwrap();
    let (repository, tag) = (format!("image.repository={repository}"), format!("image.tag={tag}"));
    let chart = file("charts/stagepost").display().to_string();
    let mut arguments = vec!["upgrade", "--install", "stagepost", &chart, "--namespace", SYSTEM, "--create-namespace"];
    arguments.extend(["--set", &repository, "--set", &tag, "--set", "controller.logFormat=text"]);
    arguments.extend(more);
    arguments.extend(["--wait", "--timeout", "120s"]);
    let printed = run("helm", &arguments, "");
    assert!(printed.ok, "helm: {}{}", printed.out, printed.err);
}

/// Once in a run of the tests: a controller of this build, begun anew.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        helm_install(&[]);
        // The image has the same name in every run.
        kubectl(&["rollout", "restart", "-n", SYSTEM, "deployment/stagepost-controller"]);
        await_controller();
    });
}

/// Waits until the controller's pods are as they should be.
pub(crate) fn await_controller() {
    kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/stagepost-controller", "--timeout=120s"]);
}

/// The controller's pods, which are not ending.
pub(crate) fn controllers() -> Vec<String> {
    let pods = list(SYSTEM, "pods", "app.kubernetes.io/component=controller");
    pods.iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Ends the controller's pods as a crash does, and waits for the next.
pub(crate) fn kill_controller() {
    for pod in controllers() {
        kubectl(&["delete", "pod", "-n", SYSTEM, &pod, "--grace-period=0", "--force"]);
    }
    eventually("a new controller is there", seconds(60), || (!controllers().is_empty()).then_some(()));
    await_controller();
}

/// What the controller logged.
pub(crate) fn controller_log() -> String {
    run("kubectl", &["logs", "-n", SYSTEM, "deployment/stagepost-controller", "--tail=60"], "").out
}

/// A signal to the process of a pod, from outside: the image has no shell.
#[track_caller]
pub(crate) fn signal(namespace: &str, pod: &str, signal: &str) {
    let pid = process(namespace, pod).to_string();
    assert!(run("kill", &[&format!("-{signal}"), &pid], "").ok);
}

/// The process of a pod of ours, by its number on this machine.
#[track_caller]
fn process(namespace: &str, pod: &str) -> u32 {
    let uid = get(namespace, "pod", pod)["metadata"]["uid"].as_str().unwrap().replace('-', "");
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let is_its = |entry: &std::fs::DirEntry| {
        text(entry.path().join("cgroup")).replace(['-', '_'], "").contains(&uid)
            && text(entry.path().join("cmdline")).contains("stagepost")
    };
    let found: Vec<_> = std::fs::read_dir("/proc").unwrap().flatten().filter(is_its).collect();
    assert_eq!(found.len(), 1, "the process of pod {pod}");
    found[0].file_name().to_str().unwrap().parse().unwrap()
}
