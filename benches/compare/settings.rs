//! What is measured, and for how long: environment variables, with defaults that take about 20 minutes.

use std::time::Duration;

/// Values of the key of `PerKey`.
pub const KEYS: u64 = 1000;

pub const BACKEND: &str = "127.0.0.1:19095";
pub const LISTEN: &str = "127.0.0.1:18080";
pub const ADMIN: &str = "127.0.0.1:19901";

/// What was asked for.
pub struct Settings {
    pub rounds: u64,
    pub seconds: u64,
    only: Vec<String>,
    stores: Vec<String>,
    who: Vec<String>,
    pub sizes: Vec<usize>,
    pub rate: f64,
}

impl Settings {
    pub fn read() -> Self {
        let list = |name: &str, default: &str| -> Vec<String> {
            let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
            text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().expect(name));
        Self {
            rounds: number("ROUNDS", 3),
            seconds: number("SECONDS", 2),
            only: list("ONLY", "limits,perftest,ingress,forward,e2e,mixed,growth"),
            stores: list("STORES", "quorum,classic,embedded"),
            who: list("WHO", "stagepost,spike,node"),
            sizes: list("SIZES", "1024,65536,1048576").iter().map(|size| size.parse().expect("SIZES")).collect(),
            rate: number("RATE", 2000) as f64,
        }
    }

    pub fn wants(&self, part: &str) -> bool {
        self.only.iter().any(|one| one == part)
    }

    pub fn on(&self, store: &str) -> bool {
        self.stores.iter().any(|one| one == store)
    }

    pub fn measures(&self, who: &str) -> bool {
        self.who.iter().any(|one| one == who)
    }

    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// How many messages a queue is filled with, so that emptying it takes about as long as the rest.
    pub fn filled(&self, size: usize, in_order: bool) -> u64 {
        self.seconds
            * match size {
                0..10_000 if in_order => 5_000,
                0..10_000 => 12_000,
                10_000..500_000 => 1_500,
                _ => 80,
            }
    }
}
