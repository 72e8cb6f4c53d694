//! "Did you mean": the nearest of some names to one that nobody knows.

/// The name that a slip of the pen would turn into `written`, if there is one near enough.
pub(super) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long texts are no slips, and comparing them costs their product.
    if written.len() > 64 {
        return None;
    }
    let lower = written.to_lowercase();
    names
        .into_iter()
        .filter(|name| name.len() <= 64 && *name != written)
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + written.chars().count().min(name.chars().count()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let names = ["maxRedeliveries", "interval", "jitter"];
        assert_eq!(nearest("maxRedeliverys", names), Some("maxRedeliveries"));
        assert_eq!(nearest("maxredeliveries", names), Some("maxRedeliveries"));
        assert_eq!(nearest("intervall", names), Some("interval"));
        assert_eq!(nearest("colour", names), None);
        assert_eq!(nearest("", names), None);
    }
}
