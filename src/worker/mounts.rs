//! Secrets and config maps as files, as the kubelet mounts them and changes them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::plan::{KeyRef, KeySource, KeyValues};

/// See the module. `secret/NAME/KEY` and `config-map/NAME/KEY` below a folder.
#[derive(Debug, Clone)]
pub(super) struct Mounts {
    folder: PathBuf,
}

impl Mounts {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn of(&self, source: KeySource, name: &str) -> PathBuf {
        self.folder.join(source.folder()).join(name)
    }

    /// Changes when any value does. What can't be read counts as not there.
    pub(super) fn fingerprint(&self, sources: &BTreeSet<(KeySource, String)>) -> Vec<u8> {
        let mut digest = Sha256::new();
        for (source, name) in sources {
            let entries = std::fs::read_dir(self.of(*source, name)).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
            paths.sort();
            for path in paths {
                digest.update(path.to_string_lossy().as_bytes());
                digest.update(std::fs::read(&path).unwrap_or_default());
                digest.update([0]);
            }
        }
        digest.finalize().to_vec()
    }
}

impl KeyValues for Mounts {
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>> {
        // Names come from a plan, whose references the API has judged; a path must still not lead out of the folder.
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        let is_plain = plain(&key.name) && plain(&key.key);
        is_plain.then(|| std::fs::read(self.of(key.source, &key.name).join(&key.key)).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, key: &str) -> KeyRef {
        KeyRef { source: KeySource::Secret, name: name.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn values_are_read_where_they_are_mounted_and_a_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret/broker");
        std::fs::create_dir_all(&secret).unwrap();
        std::fs::write(secret.join("uri"), "amqp://one").unwrap();
        let mounts = Mounts::new(folder.path().to_owned());
        let sources = BTreeSet::from([(KeySource::Secret, "broker".to_owned())]);
        assert_eq!(mounts.get(&key("broker", "uri")).unwrap(), b"amqp://one");
        let before = mounts.fingerprint(&sources);
        assert_eq!(before, mounts.fingerprint(&sources));
        std::fs::write(secret.join("uri"), "amqp://two").unwrap();
        assert_ne!(before, mounts.fingerprint(&sources));
        assert_eq!(mounts.get(&key("broker", "uri")).unwrap(), b"amqp://two");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("secret/broker")).unwrap();
        std::fs::write(folder.path().join("outside"), "no").unwrap();
        let mounts = Mounts::new(folder.path().join("secret"));
        for (name, of) in [("..", "outside"), ("broker", "../../outside"), ("", "outside"), ("broker", "")] {
            assert_eq!(mounts.get(&key(name, of)), None, "{name} {of}");
        }
    }
}
