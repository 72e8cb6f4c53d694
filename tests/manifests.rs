//! Manifests as users write them: valid ones load, invalid ones are refused with the text that was promised.

use std::path::{Path, PathBuf};

use stagepost::plan::load::{Manifests, Options, load};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn listed(manifests: &Manifests) -> String {
    manifests.violations.iter().map(|violation| format!("{violation}\n")).collect()
}

#[test]
fn every_example_is_valid_and_has_plans() {
    let Ok(entries) = std::fs::read_dir(folder("examples")) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let manifest = path.is_dir() || path.extension().is_some_and(|end| end == "yaml");
        if !manifest {
            continue;
        }
        let found = load(std::slice::from_ref(&path), &Options::default());
        assert!(found.is_valid(), "{}\n{}", path.display(), listed(&found));
        assert!(found.stores.iter().all(|loaded| loaded.plan.is_some()));
        assert!(found.routes.iter().all(|loaded| loaded.plan.is_some()));
        assert!(found.processors.iter().all(|loaded| loaded.plan.is_some()));
    }
}
