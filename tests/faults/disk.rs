//! N1, N6: the disk is full.

use std::collections::BTreeSet;

use crate::support::disk::SmallDisk;
use crate::support::{Recorder, Setup, beside_others, eventually, manifest, seconds};

#[test]
fn a_full_disk_is_503_for_callers_and_what_was_stored_drains_it_again() {
    let _machine = beside_others();
    let Some(disk) = SmallDisk::mount(24) else { return };
    let target = Recorder::start();
    let yaml = manifest::line(&target.url(), "suspend: true");
    let run = Setup::manifests(yaml).data(disk.folder()).start();
    let body = |number: usize| format!("{number:06}{}", "x".repeat(30_000));
    let mut stored = Vec::new();
    let refused = loop {
        let answer = run.post("/in", &[], body(stored.len()));
        if answer.status != 202 {
            break answer;
        }
        stored.push(body(stored.len()));
    };
    assert!(stored.len() > 100, "{}", stored.len());
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    for _ in 0..20 {
        assert_eq!(run.post("/in", &[], body(999_999)).status, 503);
    }
    assert_eq!(run.get("/livez").status, 200);
    run.edit("stagepost.yaml", "suspend: true", "suspend: false");
    target.await_hits(stored.len(), seconds(60));
    eventually("there is room again", seconds(20), || (run.post("/in", &[], "again").status == 202).then_some(()));
    stored.push("again".to_owned());
    target.await_hits(stored.len(), seconds(20));
    run.await_depth("box", 0, seconds(5));
    let came = target.texts();
    let once: BTreeSet<&String> = came.iter().collect();
    assert_eq!((once, came.len()), (stored.iter().collect(), stored.len()), "everything, once");
}
