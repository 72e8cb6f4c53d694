//! B8: a process that runs out of file descriptors. A test binary of its own, because the limit is the process's.

// A test says what went wrong by panicking.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stagepost::ingress::{Drain, Drained, RouteTable, Server};
use tokio_util::sync::CancellationToken;

const REQUEST: &[u8] = b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";

/// Descriptors that this process has open.
fn open_now() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

fn ask(client: &mut TcpStream) -> bool {
    let mut answer = [0; 12];
    client.write_all(REQUEST).is_ok() && client.read_exact(&mut answer).is_ok() && answer == *b"HTTP/1.1 404"
}

#[test]
fn b8_accepting_goes_on_when_descriptors_are_free_again() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // The kernel takes them all; the server will not be able to.
    let mut clients: Vec<_> = (0..40).map(|_| TcpStream::connect(server.local_addr()).unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open_now() + 4), ..before }).unwrap();
    let routes = Arc::new(ArcSwap::from_pointee(RouteTable::compile(vec![]).unwrap()));
    let shutdown = CancellationToken::new();
    let drain = Drain { linger: Duration::ZERO, grace: Duration::from_secs(5) };
    let serving = runtime.spawn(server.serve(routes, shutdown.clone(), drain));
    let begun = Instant::now();
    // Each client that leaves makes room for the next one, itself and its other end.
    let mut answered = BTreeMap::new();
    for number in 0..40 {
        let mut client = clients.remove(0);
        answered.insert(number, ask(&mut client));
    }
    assert!(answered.values().all(|answered| *answered), "{answered:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    setrlimit(Resource::Nofile, before).unwrap();
    shutdown.cancel();
    assert_eq!(runtime.block_on(serving).unwrap(), Drained::Complete);
}
