//! What every object in a file has: `apiVersion`, `kind`, `metadata`.

use serde_json::{Map, Value, json};

use super::KeySource;
use super::finding::{Finding, Violation};
use super::load::Options;
use super::manifest::Origin;
use super::schema::{child, shorten};
use super::suggest::nearest;
use super::validate::Kind;
use crate::api::{API_VERSION, GROUP};

/// Kind, namespace and name.
pub(super) type Identity = (&'static str, String, String);

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Head {
    Ours(Kind),
    Keys(KeySource),
    /// Skipped; the text names its kind.
    Other(String),
}

impl Head {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Ours(kind) => kind.as_str(),
            Self::Keys(KeySource::Secret) => "Secret",
            Self::Keys(KeySource::ConfigMap) => "ConfigMap",
            Self::Other(_) => "",
        }
    }
}

/// Reads what an object is and gives it its namespace. `None`: it is nothing, and the findings say why.
pub(super) fn head(value: &mut Value, options: &Options, findings: &mut Vec<Finding>) -> Option<Head> {
    let Some(fields) = value.as_object_mut() else {
        findings.push(Finding::invalid("", "not an object of Kubernetes; begin with apiVersion, kind and metadata"));
        return None;
    };
    let text = |name: &str, findings: &mut Vec<Finding>| match fields.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(_) => {
            findings.push(Finding::invalid(name, "must be text; put quotes around it"));
            None
        }
        None => {
            let ours = Kind::ALL.map(Kind::as_str).join(", ");
            let hint = if name == "kind" { format!("one of {ours}") } else { format!("`apiVersion: {API_VERSION}`") };
            findings.push(Finding::invalid(name, format!("is missing; add {hint}")));
            None
        }
    };
    let (version, kind) = (text("apiVersion", findings), text("kind", findings));
    let (version, kind) = (version?, kind?);
    let head = what(&version, &kind, findings)?;
    if matches!(head, Head::Other(_)) {
        return Some(head);
    }
    check_metadata(fields, options, findings);
    Some(head)
}

fn what(version: &str, kind: &str, findings: &mut Vec<Finding>) -> Option<Head> {
    let ours = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (version, kind) {
        ("v1", "Secret") => return Some(Head::Keys(KeySource::Secret)),
        ("v1", "ConfigMap") => return Some(Head::Keys(KeySource::ConfigMap)),
        (API_VERSION, _) => {}
        _ if group == GROUP => {
            let message = format!("`{}` is not a version of {GROUP}; write {API_VERSION}", shorten(version));
            findings.push(Finding::invalid("apiVersion", message));
            return None;
        }
        // A slip in the group would make the object be skipped without a word.
        _ if ours.is_some() && nearest(version, [API_VERSION]).is_some() => {
            let message =
                format!("`{}` is not an API version of {kind}; did you mean `{API_VERSION}`?", shorten(version));
            findings.push(Finding::invalid("apiVersion", message));
            return None;
        }
        _ => return Some(Head::Other(format!("{} ({})", shorten(kind), shorten(version)))),
    }
    if let Some(kind) = ours {
        return Some(Head::Ours(kind));
    }
    let names = Kind::ALL.map(Kind::as_str);
    let message = match nearest(kind, names) {
        Some(near) => format!("`{}` is not a kind of {GROUP}; did you mean `{near}`?", shorten(kind)),
        None => format!("`{}` is not a kind of {GROUP}; the kinds are {}", shorten(kind), names.join(", ")),
    };
    findings.push(Finding::invalid("kind", message));
    None
}

/// The fields of metadata, for suggestions.
const METADATA: [&str; 14] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
];

fn check_metadata(fields: &mut Map<String, Value>, options: &Options, findings: &mut Vec<Finding>) {
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else {
        findings.push(Finding::invalid("metadata", "must be a mapping; give it a name"));
        fields.insert("metadata".to_owned(), json!({}));
        return;
    };
    metadata.retain(|name, value| {
        let path = child("metadata", name);
        let known = METADATA.contains(&name.as_str()) || name == "uid";
        if !known {
            let message = match nearest(name, METADATA) {
                Some(near) => format!("unknown field; did you mean `{near}`?"),
                None => "unknown field; remove it".to_owned(),
            };
            findings.push(Finding::invalid(path, message));
            return false;
        }
        match name.as_str() {
            "name" | "namespace" => {
                let valid = value.as_str().is_some_and(|text| !text.is_empty());
                if !valid {
                    findings.push(Finding::invalid(path, "must be text that is not empty; put quotes around it"));
                }
                valid
            }
            "labels" | "annotations" => check_texts(&path, value, findings),
            // Of an object that was read from a cluster: what matters here are names.
            "uid" | "finalizers" | "generation" | "creationTimestamp" => true,
            _ => false,
        }
    });
    if !metadata.contains_key("name") && !findings.iter().any(|finding| finding.path == "metadata.name") {
        findings.push(Finding::invalid("metadata.name", "is missing; give the object a name"));
    }
    metadata.entry("name").or_insert_with(|| json!(""));
    metadata.entry("namespace").or_insert_with(|| json!(options.default_namespace));
}

fn check_texts(path: &str, value: &mut Value, findings: &mut Vec<Finding>) -> bool {
    let Some(entries) = value.as_object_mut() else {
        if !value.is_null() {
            findings.push(Finding::invalid(path, "must be a mapping of names to text; write it as `name: \"value\"`"));
        }
        return false;
    };
    entries.retain(|name, value| {
        if !value.is_string() {
            let message = format!("must be text, not {}; put quotes around it", shorten(&value.to_string()));
            findings.push(Finding::invalid(child(path, name), message));
        }
        value.is_string()
    });
    true
}

/// What the text of an object shows before its meaning is looked at: keys that stand twice.
pub(super) fn check_text(origin: &Origin, value: &Value, findings: &mut Vec<Finding>) {
    for (path, line) in origin.duplicates() {
        let message = format!("stands twice, again at line {line}, where the last would win; remove one of them");
        findings.push(Finding::invalid(path, message));
    }
    if value["kind"] == "Secret" || value["kind"] == "ConfigMap" {
        check_booleans(origin, value, findings);
    }
}

/// Texts that kubectl would read as booleans.
pub(super) fn check_booleans(origin: &Origin, value: &Value, findings: &mut Vec<Finding>) {
    for (path, text) in origin.yaml_1_1_booleans() {
        let is_text = at(value, path).is_some_and(Value::is_string);
        if is_text && !findings.iter().any(|finding| finding.path == path) {
            let message = format!("`{text}` without quotes is a boolean to kubectl; put quotes around it");
            findings.push(Finding::invalid(path, message));
        }
    }
}

/// The value at a path as this module's neighbours write it.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let mut value = value;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let end = quoted.find("\"]")?;
            value = value.get(&quoted[..end])?;
            rest = &quoted[end + 2..];
        } else if let Some(index) = rest.strip_prefix('[') {
            let end = index.find(']')?;
            value = value.get(index[..end].parse::<usize>().ok()?)?;
            rest = &index[end + 1..];
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            value = value.get(&name[..end])?;
            rest = &name[end..];
            if name.is_empty() {
                return None;
            }
        }
    }
    Some(value)
}

/// What is said of an object in a file.
pub(super) fn violation(origin: &Origin, kind: &str, name: &str, finding: Finding) -> Violation {
    Violation {
        file: origin.file.clone(),
        line: origin.line_of(&finding.path),
        kind: kind.to_owned(),
        name: shorten(name),
        path: finding.path,
        message: finding.message,
    }
}
