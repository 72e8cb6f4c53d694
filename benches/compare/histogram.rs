//! Times by size, in steps of less than 2 %.

use serde::{Deserialize, Serialize};

/// Steps in each power of two.
const STEPS: u64 = 64;

/// Nanoseconds, counted.
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
}

/// The percentiles that are shown, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 60 * usize::try_from(STEPS).unwrap()], count: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, nanoseconds: u64) {
        let power = u64::from(nanoseconds.max(STEPS).ilog2()) - 6;
        let place = if power == 0 { nanoseconds } else { power * STEPS + (nanoseconds >> power) };
        self.counts[usize::try_from(place).unwrap()] += 1;
        self.count += 1;
    }

    pub fn percentiles(&self) -> Percentiles {
        Percentiles { p50: self.at(0.5), p99: self.at(0.99), p999: self.at(0.999) }
    }

    fn at(&self, share: f64) -> f64 {
        let wanted = self.count as f64 * share;
        let mut sum = 0;
        for (place, count) in self.counts.iter().enumerate() {
            sum += count;
            if *count > 0 && sum as f64 >= wanted {
                let place = place as u64;
                let power = (place / STEPS).saturating_sub(1);
                let nanoseconds = if power == 0 { place } else { (place - power * STEPS) << power };
                return nanoseconds as f64 / 1e6;
            }
        }
        0.0
    }
}
