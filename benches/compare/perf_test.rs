//! RabbitMQ's own `PerfTest`, which others measure with.

use std::path::PathBuf;
use std::process::Command;

use crate::amqp::Kind;
use crate::process::has;
use crate::table::Sample;

pub const VERSION: &str = "2.22.1";

/// With its class path.
pub struct PerfTest(String);

impl PerfTest {
    /// Fetches it by Maven, once.
    pub fn fetch() -> Option<Self> {
        let what = "RabbitMQ's PerfTest";
        if !has("java", what) {
            return None;
        }
        let folder = cache().join(format!("perf-test-{VERSION}"));
        if !folder.join("lib").exists() {
            if !has("mvn", what) {
                return None;
            }
            std::fs::create_dir_all(&folder).unwrap();
            let pom = format!(
                "<project><modelVersion>4.0.0</modelVersion><groupId>b</groupId><artifactId>b</artifactId>\
                 <version>1</version><dependencies><dependency><groupId>com.rabbitmq</groupId>\
                 <artifactId>perf-test</artifactId><version>{VERSION}</version></dependency></dependencies></project>"
            );
            std::fs::write(folder.join("pom.xml"), pom).unwrap();
            let copied = Command::new("mvn")
                .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=unfinished"])
                .current_dir(&folder)
                .status()
                .unwrap();
            if !copied.success() {
                eprintln!("LEFT OUT: {what}; it could not be fetched");
                return None;
            }
            std::fs::rename(folder.join("unfinished"), folder.join("lib")).unwrap();
        }
        Some(Self(format!("{}/*", folder.join("lib").display())))
    }

    /// Confirmed publishes with a window, or with none deliveries with acks, for so many seconds.
    pub fn run(&self, uri: &str, kind: Kind, window: Option<usize>, seconds: u64) -> (Sample, u64) {
        let mut command = Command::new("java");
        command.args(["-cp", &self.0, "com.rabbitmq.perf.PerfTest", "-h", uri]);
        command.args(["-u", &format!("perf-{}", kind.name()), "-f", "persistent", "-ad", "false", "-s", "1024"]);
        command.args(if kind == Kind::Quorum { &["-qq"][..] } else { &["-qa", "x-queue-type=classic"] });
        match window {
            Some(window) => command.args(["-x", "1", "-y", "0", "-c", &window.to_string()]),
            None => command.args(["-x", "0", "-y", "1", "-q", "64", "-A", "16"]),
        };
        let output = command.args(["-z", &seconds.to_string()]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = if window.is_none() { "receiving rate avg:" } else { "sending rate avg:" };
        let line = text.lines().rev().find(|line| line.contains(wanted));
        let rate = line.and_then(|line| line.split(wanted).nth(1)?.split_whitespace().next()?.parse().ok());
        let per_second: f64 = rate.unwrap_or_else(|| panic!("PerfTest printed no rate:\n{text}"));
        (Sample { per_second, ..Sample::default() }, (per_second * seconds as f64) as u64)
    }
}

/// Where what is fetched stays.
pub fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let caches = || variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap().join(".cache"));
    variable("STAGEPOST_CACHE").unwrap_or_else(|| caches().join("stagepost"))
}
