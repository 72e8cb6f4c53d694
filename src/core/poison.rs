//! Messages that may be what kills the process that delivers them: they came back again and again.
//!
//! A process that is killed can't say what it died of. So it says beforehand what it is about to do, where others find
//! it: [`note`] is what it leaves behind, [`read`] is for whoever finds it.

/// Returns, of whatever kind, from which on a message is suspected if a process dies at it.
pub const SUSPECTED_AFTER: u32 = 5;

/// Of the names in a note: a kubelet keeps 4 KiB of it.
const MOST_BYTES: usize = 3 * 1024;

/// What is left behind while these messages are under way; empty if there are none.
pub fn note<'a>(ids: impl IntoIterator<Item = &'a str>) -> String {
    let mut quoted = Vec::new();
    let mut bytes = 0;
    for id in ids {
        let id = serde_json::Value::from(id).to_string();
        bytes += id.len() + 1;
        if bytes > MOST_BYTES {
            break;
        }
        quoted.push(id);
    }
    if quoted.is_empty() { String::new() } else { format!("{}[{}]", introduction(), quoted.join(",")) }
}

/// The messages that a note names; none, if it is no such note.
pub fn read(note: &str) -> Vec<String> {
    let list = note.trim().strip_prefix(&introduction());
    list.and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default()
}

fn introduction() -> String {
    format!("it ended while it delivered what had come back {SUSPECTED_AFTER} times or more: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_read_again() {
        assert_eq!(note([]), "");
        // Ids of other clients may hold anything.
        let ids = ["01a2", "with \"quotes\", and\na line", "\\"];
        assert_eq!(read(&note(ids)), ids);
        assert_eq!(read(&format!("{}\n", note(ids))), ids);
    }

    #[test]
    fn other_words_name_nobody() {
        assert_eq!(read(""), Vec::<String>::new());
        assert_eq!(read("panicked at [\"somewhere\"]"), Vec::<String>::new());
    }

    #[test]
    fn a_note_fits_into_what_a_kubelet_keeps() {
        let long = "\u{1}".repeat(255);
        let note = note(std::iter::repeat_n(long.as_str(), 100));
        assert!(note.len() < 4096);
        assert_eq!(read(&note), [long.clone(), long]);
    }
}
