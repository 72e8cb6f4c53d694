//! Manifests as text: the smallest that work, with what a test wants on top.

use std::fmt::Write;

/// A `MessageStore`; `spec` is further YAML of its spec, with no indent.
pub fn store(name: &str, spec: &str) -> String {
    object("MessageStore", name, &format!("broker:\n  secretRef: {{name: rabbitmq}}\n{}", or_queue(spec)))
}

fn or_queue(spec: &str) -> String {
    let has_one = spec.contains("queue:") || spec.contains("exchange:");
    if has_one { spec.to_owned() } else { format!("{spec}\nqueue: {{}}").trim_start().to_owned() }
}

/// An `IngressRoute` with one rule: POST `path` into `store`.
pub fn route(name: &str, path: &str, store: &str) -> String {
    object("IngressRoute", name, &format!("rules:\n- name: post\n  path: {path}\n  storeRef: {{name: {store}}}"))
}

/// A `ForwardingProcessor` from `store` to `url`; `spec` is further YAML of its spec.
pub fn processor(name: &str, store: &str, url: &str, spec: &str) -> String {
    object("ForwardingProcessor", name, &format!("storeRef: {{name: {store}}}\ntarget: {{url: \"{url}\"}}\n{spec}"))
}

/// Any object; `spec` is YAML with no indent.
pub fn object(kind: &str, name: &str, spec: &str) -> String {
    let mut yaml =
        format!("---\napiVersion: stagepost.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n");
    for line in spec.lines() {
        let _ = writeln!(yaml, "  {line}");
    }
    yaml
}

/// POST `/in` into store `box`, from there to `url` by the processor `out`.
pub fn line(url: &str, spec: &str) -> String {
    [store("box", ""), route("in", "/in", "box"), processor("out", "box", url, spec)].concat()
}
