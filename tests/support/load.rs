//! Senders that go on over any number of restarts, each noting what it saw.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::checker::{Checker, Id, Saw};
use super::http::{Connection, Failed};
use super::millis;

/// Threads that POST to `/in`, and the log of what they saw.
pub struct Load {
    checker: Arc<Checker>,
    address: Arc<RwLock<SocketAddr>>,
    stop: Arc<AtomicBool>,
    senders: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// To this address. Each sender sends at least `least` messages, one after the other, `pace` apart, until it is stopped.
    pub fn start(to: SocketAddr, senders: u32, least: u32, pace: Duration) -> Self {
        let checker = Arc::<Checker>::default();
        let address = Arc::new(RwLock::new(to));
        let stop = Arc::new(AtomicBool::new(false));
        let senders = (0..senders)
            .map(|sender| {
                let (checker, address, stop) = (checker.clone(), address.clone(), stop.clone());
                std::thread::spawn(move || send(sender, least, pace, &checker, &address, &stop))
            })
            .collect();
        Self { checker, address, stop, senders }
    }

    /// The process has other ports now.
    pub fn moved(&self, to: SocketAddr) {
        *self.address.write().unwrap() = to;
    }

    /// What they saw.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Stops the senders and waits for them.
    pub fn finish(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for sender in self.senders.drain(..) {
            sender.join().unwrap();
        }
    }
}

fn send(sender: u32, least: u32, pace: Duration, checker: &Checker, address: &RwLock<SocketAddr>, stop: &AtomicBool) {
    let mut connection = None;
    let mut number = 0;
    while number < least || !stop.load(Ordering::SeqCst) {
        let to = *address.read().unwrap();
        let Some(open) = connection.take().or_else(|| Connection::open(to).ok()) else {
            std::thread::sleep(millis(10));
            continue;
        };
        let mut open: Connection = open;
        let id = Id { sender, number };
        match open.request("POST", "/in", &[], id.payload().as_bytes()) {
            Ok(answer) => {
                checker.saw(id, if answer.status == 202 { Saw::Ok } else { Saw::Fail });
                connection = (!answer.closes()).then_some(open);
            }
            Err(Failed::NotSent(_)) => continue,
            Err(Failed::Unknown(_)) => checker.saw(id, Saw::Unknown),
        }
        number += 1;
        std::thread::sleep(pace);
    }
}
