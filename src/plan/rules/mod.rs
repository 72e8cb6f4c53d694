//! Every rule that objects must keep, in one list, whoever enforces it.
//!
//! What one object can decide without computing stands in the schema of its kind, as a constraint or as a CEL rule
//! with a message ([`cel`]); the API server refuses it. The rest ([`object`], [`between`]) is found by the
//! controller (`Accepted=False`). `stagepost check` finds all of them, with the same words.

pub(super) mod between;
pub(super) mod cel;
mod compiles;
pub(super) mod object;

/// Who enforces a rule in a cluster. `stagepost check` and `stagepost run` enforce all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The API server, by CEL.
    Cel,
    /// The controller.
    Controller,
}

/// One rule, for documentation and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleInfo {
    /// A stable name.
    pub id: &'static str,
    /// Who enforces it.
    pub by: By,
    /// The field that it is reported at, below the value it applies to; empty for that value itself.
    pub field: &'static str,
    /// What is said; of a controller's rule only the remedy, since what is wrong depends on the object.
    pub message: &'static str,
}

/// All rules, in the order in which they are checked.
pub fn all() -> Vec<RuleInfo> {
    let cel = cel::CHECKS.iter().map(|check| RuleInfo {
        id: check.id,
        by: By::Cel,
        field: check.field,
        message: check.rule.message,
    });
    let controller =
        |rule: &Controlled| RuleInfo { id: rule.id, by: By::Controller, field: rule.field, message: rule.remedy };
    cel.chain(object::RULES.iter().map(controller)).chain(between::RULES.iter().map(controller)).collect()
}

/// A rule that the controller enforces.
pub(super) struct Controlled {
    pub(super) id: &'static str,
    pub(super) field: &'static str,
    pub(super) remedy: &'static str,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api;

    fn schemas(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
        visit(path, schema);
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            schemas(field, &format!("{path}.{name}"), visit);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                schemas(&schema[key], &format!("{path}[]"), visit);
            }
        }
    }

    fn in_crds(of: impl Fn(&Value) -> Vec<(String, String)>) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for kind in ["MessageStore", "IngressRoute", "ForwardingProcessor"] {
            schemas(&api::schema(kind).unwrap(), kind, &mut |_, schema| found.extend(of(schema)));
        }
        found
    }

    #[test]
    fn every_cel_rule_stands_in_a_crd_with_its_message_and_has_a_meaning_here() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let in_crds = in_crds(|schema| {
            let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
            rules.map(|rule| (text(&rule["rule"]), text(&rule["message"]))).collect()
        });
        let here: BTreeSet<_> =
            cel::CHECKS.iter().map(|c| (c.rule.rule.to_owned(), c.rule.message.to_owned())).collect();
        assert_eq!(in_crds, here);
    }

    #[test]
    fn every_pattern_of_the_crds_has_words_here() {
        let patterns = in_crds(|schema| {
            schema["pattern"].as_str().map(|pattern| (pattern.to_owned(), String::new())).into_iter().collect()
        });
        let known: BTreeSet<_> = cel::PATTERNS.iter().map(|p| ((*p).to_owned(), String::new())).collect();
        assert_eq!(patterns, known);
    }

    #[test]
    fn rules_over_time_stand_on_specs_only() {
        for kind in ["MessageStore", "IngressRoute", "ForwardingProcessor"] {
            schemas(&api::schema(kind).unwrap(), kind, &mut |path, schema| {
                for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                    let over_time = rule["rule"].as_str().unwrap().contains("oldSelf");
                    assert!(!over_time || path == format!("{kind}.spec"), "{path}: {rule}");
                }
            });
        }
    }

    #[test]
    fn messages_say_what_to_do_and_ids_are_unique() {
        let mut ids = BTreeSet::new();
        for rule in all() {
            assert!(ids.insert(rule.id), "{} is there twice", rule.id);
            assert!(rule.by == By::Controller || rule.message.contains("; "), "{}: {}", rule.id, rule.message);
            assert!(!rule.message.ends_with('.'), "{}", rule.message);
        }
    }
}
