//! A namespace of one test's own: a broker, a target, objects, callers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{self, get, image, kubectl, list, run};
use crate::support::http::{Answer, Connection};
use crate::support::{eventually, seconds};

/// See the module. It goes with the test.
pub(crate) struct Space {
    pub(crate) name: String,
    sink: Mutex<Option<SocketAddr>>,
}

/// A target that records what it gets.
const SINK: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sink}
spec:
  selector: {matchLabels: {app: sink}}
  template:
    metadata: {labels: {app: sink}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: sink
        image: IMAGE
        args: [sink, --listen, "0.0.0.0:9090"]
        readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: sink}
spec: {selector: {app: sink}, ports: [{port: 9090}]}
"#;

/// A hit of the target.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) path: String,
    pub(crate) headers: Value,
    pub(crate) body: Vec<u8>,
    pub(crate) time: jiff::Timestamp,
}

impl Hit {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        Some(self.headers.get(name)?.get(0)?.as_str()?.to_owned())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Space {
    /// Held to the `restricted` Pod Security Standard, with nothing in it.
    pub(crate) fn empty(name: &str) -> Self {
        let name = format!("t-{name}-{}", std::process::id());
        kubectl(&["create", "namespace", &name]);
        kubectl(&["label", "namespace", &name, "pod-security.kubernetes.io/enforce=restricted"]);
        Self { name, sink: Mutex::default() }
    }

    /// With a broker and a target `sink:9090`, both ready.
    pub(crate) fn new(name: &str) -> Self {
        let space = Self::empty(name);
        space.broker();
        space.target();
        space.await_deployment("rabbitmq");
        space.await_deployment("sink");
        space
    }

    /// Makes a broker. Does not wait for it.
    pub(crate) fn broker(&self) {
        let path = cluster::file("tests/cluster/rabbitmq.yaml");
        self.apply(&std::fs::read_to_string(path).unwrap());
    }

    /// Makes the target. Does not wait for it.
    pub(crate) fn target(&self) {
        self.apply(&SINK.replace("IMAGE", &image()));
    }

    pub(crate) fn await_deployment(&self, name: &str) {
        let deployment = format!("deployment/{name}");
        kubectl(&["rollout", "status", "-n", &self.name, &deployment, "--timeout=120s"]);
    }

    /// `kubectl apply`, which must go well.
    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        let printed = run("kubectl", &["apply", "-n", &self.name, "-f", "-"], yaml);
        assert!(printed.ok, "{}\n{yaml}", printed.err);
    }

    /// `kubectl` in this namespace, which must go well.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.name], arguments].concat())
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        get(&self.name, kind, name)
    }

    /// A merge patch.
    #[track_caller]
    pub(crate) fn patch(&self, kind: &str, name: &str, patch: &Value) {
        self.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch.to_string()]);
    }

    /// Waits until an object is like that. Panics with the object.
    #[track_caller]
    pub(crate) fn until(&self, kind: &str, name: &str, within: Duration, like: impl Fn(&Value) -> bool) -> Value {
        let deadline = std::time::Instant::now() + within;
        loop {
            let object = self.get(kind, name);
            if like(&object) {
                return object;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "within {within:?} it did not come true: {kind}/{name} {object:#}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for the condition Ready.
    #[track_caller]
    pub(crate) fn ready(&self, kind: &str, name: &str) -> Value {
        self.until(kind, name, seconds(60), |object| is(object, "Ready", "True"))
    }

    /// The pods of an object of ours, which are not ending.
    pub(crate) fn pods(&self, name: &str) -> Vec<Value> {
        let pods = list(&self.name, "pods", &format!("stagepost.dev/name={name}"));
        pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// Where a Service is.
    pub(crate) fn address(&self, service: &str, port: u16) -> SocketAddr {
        let ip = self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]);
        SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
    }

    /// A connection to a route. A Service leads to pods that have become ready a moment later.
    #[track_caller]
    fn connect(&self, route: &str) -> Connection {
        let address = self.address(route, 80);
        eventually("the route's Service leads to a pod", seconds(10), || Connection::open(address).ok())
    }

    /// A POST to a route.
    #[track_caller]
    pub(crate) fn post(&self, route: &str, path: &str, body: &str) -> Answer {
        let mut connection = self.connect(route);
        connection.request("POST", path, &[("content-type", b"application/json")], body.as_bytes()).unwrap()
    }

    fn sink(&self) -> Connection {
        let address = *self.sink.lock().unwrap().get_or_insert_with(|| self.address("sink", 9090));
        eventually("the target's Service leads to its pod", seconds(10), || Connection::open(address).ok())
    }

    /// What the target got.
    pub(crate) fn hits(&self) -> Vec<Hit> {
        let answer = self.sink().request("GET", "/__hits", &[], b"").unwrap().json();
        let hit = |hit: &Value| Hit {
            path: hit["path"].as_str().unwrap_or_default().to_owned(),
            headers: hit["headers"].clone(),
            body: base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                hit["body"]["base64"].as_str().or(hit["bodyBase64"].as_str()).unwrap_or_default(),
            )
            .unwrap(),
            time: hit["time"].as_str().unwrap().parse().unwrap(),
        };
        answer.as_array().or(answer["hits"].as_array()).unwrap().iter().map(hit).collect()
    }

    /// Waits until the target got so many.
    #[track_caller]
    pub(crate) fn await_hits(&self, count: usize, within: Duration) -> Vec<Hit> {
        eventually(&format!("{count} hits"), within, || Some(self.hits()).filter(|hits| hits.len() >= count))
    }

    /// What the target answers from now on, one a hit; the last repeats.
    pub(crate) fn answers(&self, statuses: &[u16]) {
        self.script(&json!(statuses));
    }

    /// What the target answers from now on, as `PUT /__script` takes it.
    pub(crate) fn script(&self, script: &Value) {
        let answer = self.sink().request("PUT", "/__script", &[], script.to_string().as_bytes()).unwrap();
        assert!(answer.status < 300, "{}", answer.text());
    }

    /// What `kubectl get` shows of an object in this column; empty if nothing.
    pub(crate) fn column(&self, kind: &str, name: &str, column: &str) -> String {
        let printed = self.kubectl(&["get", kind, name]);
        let (head, row) = printed.split_once('\n').unwrap();
        let from = head.find(column).unwrap_or_else(|| panic!("no column {column}: {head}"));
        row.get(from..).unwrap_or_default().split("  ").next().unwrap_or_default().trim().to_owned()
    }

    /// Waits until `kubectl get` shows this in this column.
    #[track_caller]
    pub(crate) fn shows(&self, kind: &str, name: &str, column: &str, wanted: &str) {
        eventually(&format!("{column} of {kind} {name} is {wanted}"), seconds(60), || {
            (self.column(kind, name, column) == wanted).then_some(())
        });
    }

    /// The notes of all Events with this reason about an object, one an occurrence.
    pub(crate) fn events(&self, reason: &str, name: &str) -> Vec<String> {
        let about = format!("reason={reason},involvedObject.name={name}");
        let listed = self.kubectl(&["get", "events", "--field-selector", &about, "-o", "json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let note = |event: &Value| {
            let times = event["series"]["count"].as_u64().or(event["count"].as_u64()).unwrap_or(1).max(1);
            vec![event["message"].as_str().unwrap_or_default().to_owned(); usize::try_from(times).unwrap()]
        };
        listed["items"].as_array().unwrap().iter().flat_map(note).collect()
    }

    /// The name of the only pod of an object.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> String {
        let pods = self.pods(name);
        assert_eq!(pods.len(), 1, "{pods:#?}");
        pods[0]["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Messages in a queue, by the broker; `None` if there is none of this name.
    pub(crate) fn queue(&self, name: &str) -> Option<u64> {
        let listed = self.kubectl(&[
            "exec",
            "deployment/rabbitmq",
            "--",
            "rabbitmqctl",
            "-q",
            "list_queues",
            "name",
            "messages",
        ]);
        listed.lines().find_map(|line| {
            let (queue, count) = line.split_once('\t')?;
            (queue == name).then(|| count.trim().parse().unwrap())
        })
    }

    /// A store `box`, a route `in` for POST `/in`, a processor `out` to the target; `spec` is further YAML of its spec.
    pub(crate) fn line(&self, spec: &str) {
        self.apply(&line(spec));
        for (kind, name) in [("mstore", "box"), ("iroute", "in"), ("fwp", "out")] {
            self.ready(kind, name);
        }
        drop(self.connect("in"));
    }
}

/// See [`Space::line`].
pub(crate) fn line(spec: &str) -> String {
    use crate::support::manifest;
    let processor =
        format!("storeRef: {{name: box}}\ntarget: {{serviceRef: {{name: sink, port: 9090, path: /target}}}}\n{spec}");
    [
        manifest::store("box", ""),
        manifest::route("in", "/in", "box"),
        manifest::object("ForwardingProcessor", "out", &processor),
    ]
    .concat()
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- {}", self.name);
            for arguments in [
                vec!["get", "stagepost,deployments,pods", "-o", "wide"],
                vec!["get", "events", "--sort-by=.lastTimestamp"],
                vec!["logs", "-l", "app.kubernetes.io/managed-by=stagepost", "--tail=20", "--prefix"],
            ] {
                println!("{}", run("kubectl", &[&["-n", self.name.as_str()], &arguments[..]].concat(), "").out);
            }
            println!("--- controller\n{}", cluster::controller_log());
        }
        run("kubectl", &["delete", "namespace", &self.name, "--wait=false"], "");
    }
}

/// A condition of an object.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&NONE)
}

/// Whether a condition of an object has this status, for the spec as it is now.
pub(crate) fn is(object: &Value, kind: &str, status: &str) -> bool {
    let condition = condition(object, kind);
    condition["status"] == status && condition["observedGeneration"] == object["metadata"]["generation"]
}

/// Whether a condition of an object has this status and reason.
pub(crate) fn has(object: &Value, kind: &str, status: &str, reason: &str) -> bool {
    is(object, kind, status) && condition(object, kind)["reason"] == reason
}
