//! Starting: how fast, how small, and what is said when it can't be done.

use std::time::Instant;

use crate::support::{Recorder, Setup, manifest, millis, process, seconds};

#[test]
fn the_quickstart_is_ready_quickly_and_small_while_idle() {
    let target = Recorder::start();
    let run = || Setup::example("quickstart").service("orders-backend", &target.url()).start();
    // The best of three: other tests run at the same time.
    let mut best = seconds(60);
    let mut resident = u64::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let running = run();
        best = best.min(begun.elapsed());
        std::thread::sleep(millis(500));
        resident = resident.min(running.memory("VmRSS"));
    }
    println!("ready after {best:?}, {resident} KiB resident");
    if cfg!(debug_assertions) {
        assert!(best < seconds(5), "ready after {best:?}");
        assert!(resident < 80 * 1024, "{resident} KiB resident");
    } else {
        assert!(best < millis(300), "ready after {best:?}");
        assert!(resident < 25 * 1024, "{resident} KiB resident");
    }
}

#[test]
fn a_second_run_on_the_same_data_is_refused_with_the_holder_s_process_id() {
    let target = Recorder::start();
    let data = tempfile::TempDir::new().unwrap();
    let folder = data.path().to_str().unwrap();
    let yaml = manifest::line(&target.url(), "");
    let file = data.path().join("second.yaml");
    std::fs::write(&file, &yaml).unwrap();
    let first = Setup::manifests(yaml).arg("--data").arg(folder).start();
    let second = ["run", file.to_str().unwrap(), "--data", folder, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let done = process::run(&second);
    assert_eq!(done.code, 3, "{}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains(&first.pid().to_string()), "{}", done.stderr);
}

#[test]
fn a_port_that_is_taken_is_named_and_ends_the_start() {
    let taken = Recorder::start();
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("stagepost.yaml");
    std::fs::write(&file, manifest::line(&taken.url(), "")).unwrap();
    let data = dir.path().join("data");
    let args = [
        "run",
        file.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--listen",
        &taken.host(),
        "--admin",
        "127.0.0.1:0",
    ];
    let done = process::run(&args);
    assert_eq!(done.code, 3, "{}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains(&taken.host()), "{}", done.stderr);
}

#[test]
fn wrong_usage_and_wrong_manifests_have_exit_codes_of_their_own() {
    assert_eq!(process::run(&["run"]).code, 2);
    assert_eq!(process::run(&["check", "--no-such-flag"]).code, 2);
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("typo.yaml");
    std::fs::write(&file, manifest::line("http://127.0.0.1:1/", "retry: {maxRedelivery: 3}")).unwrap();
    let done = process::run(&["check", file.to_str().unwrap()]);
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    for word in ["typo.yaml:", "ForwardingProcessor/out", "maxRedelivery", "maxRedeliveries"] {
        assert!(done.stdout.contains(word), "`{word}` is not in {}", done.stdout);
    }
}
