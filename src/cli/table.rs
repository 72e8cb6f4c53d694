//! The `kubectl get` tables of the three kinds, from the JSON of `/status`.

use jiff::Timestamp;
use serde_json::Value;

use crate::local::table::{age, align};

/// A column: its title, whether only `-o wide` shows it, and where its text stands in the item.
struct Column {
    title: &'static str,
    wide: bool,
    cell: Cell,
}

enum Cell {
    /// A JSON pointer; absent: `<none>`.
    At(&'static str),
    /// A JSON pointer; absent: 0.
    Count(&'static str),
    /// A field of the condition Ready.
    Ready(&'static str),
    /// The time since.
    Since(&'static str),
    /// `namespace/name`, or the name in `default`.
    Name,
}

const fn column(title: &'static str, cell: Cell) -> Column {
    Column { title, wide: false, cell }
}

const fn wide(title: &'static str, cell: Cell) -> Column {
    Column { title, wide: true, cell }
}

const AGE: &str = "/metadata/creationTimestamp";

const KINDS: [(&str, &[Column]); 3] = [
    (
        "MessageStore",
        &[
            column("NAME", Cell::Name),
            column("QUEUE", Cell::At("/status/queue/name")),
            column("TYPE", Cell::At("/status/queue/type")),
            column("MESSAGES", Cell::At("/status/messages")),
            column("CONSUMERS", Cell::At("/status/consumers")),
            column("READY", Cell::Ready("status")),
            column("REASON", Cell::Ready("reason")),
            column("AGE", Cell::Since(AGE)),
        ],
    ),
    (
        "IngressRoute",
        &[
            column("NAME", Cell::Name),
            column("ADDRESS", Cell::At("/status/address")),
            column("READY", Cell::Ready("status")),
            column("REPLICAS", Cell::Count("/status/replicas")),
            column("ACCEPTED", Cell::Count("/status/accepted")),
            column("FAILED", Cell::Count("/status/failed")),
            wide("REJECTED", Cell::Count("/status/rejected")),
            wide("REASON", Cell::Ready("reason")),
            column("AGE", Cell::Since(AGE)),
        ],
    ),
    (
        "ForwardingProcessor",
        &[
            column("NAME", Cell::Name),
            column("STORE", Cell::At("/spec/storeRef/name")),
            column("TARGET", Cell::At("/status/target")),
            column("STATE", Cell::At("/status/state")),
            column("DELIVERED", Cell::Count("/status/delivered")),
            column("BACKLOG", Cell::At("/status/backlog")),
            column("DLC", Cell::At("/status/deadLetter/messages")),
            column("READY", Cell::Ready("status")),
            column("REASON", Cell::At("/status/reason")),
            wide("FAILED", Cell::Count("/status/failedAttempts")),
            wide("DROPPED", Cell::Count("/status/dropped")),
            wide("LAST-DELIVERY", Cell::Since("/status/lastDelivery/time")),
            column("AGE", Cell::Since(AGE)),
        ],
    ),
];

/// One table for each kind that is there, an empty line between them.
pub(super) fn render(items: &[Value], show_wide: bool, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, columns) in KINDS {
        let of_kind: Vec<&Value> = items.iter().filter(|item| item["kind"] == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let shown: Vec<&Column> = columns.iter().filter(|column| show_wide || !column.wide).collect();
        let mut rows = vec![shown.iter().map(|column| column.title.to_owned()).collect::<Vec<_>>()];
        rows.extend(of_kind.iter().map(|item| shown.iter().map(|column| cell(item, column, now)).collect::<Vec<_>>()));
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(align(&rows));
    }
    lines
}

fn cell(item: &Value, column: &Column, now: Timestamp) -> String {
    let none = || "<none>".to_owned();
    match column.cell {
        Cell::At(pointer) => item.pointer(pointer).map_or_else(none, plain),
        Cell::Count(pointer) => item.pointer(pointer).map_or_else(|| "0".to_owned(), plain),
        Cell::Ready(field) => ready(item).map_or_else(|| "Unknown".to_owned(), |ready| plain(&ready[field])),
        Cell::Since(pointer) => {
            let time = item.pointer(pointer).and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
            time.map_or_else(none, |time| age(now.as_second() - time.as_second()))
        }
        Cell::Name => {
            let name = plain(&item["metadata"]["name"]);
            match item["metadata"]["namespace"].as_str() {
                Some(namespace) if namespace != "default" => format!("{namespace}/{name}"),
                _ => name,
            }
        }
    }
}

fn ready(item: &Value) -> Option<&Value> {
    item["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn items() -> Vec<Value> {
        vec![
            json!({"kind": "MessageStore", "metadata": {"name": "orders", "namespace": "default"}, "status": {
                "queue": {"name": "default.orders", "type": "Quorum"}, "messages": 3, "consumers": 1,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}}),
            json!({"kind": "ForwardingProcessor",
                "metadata": {"name": "settle", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"storeRef": {"name": "orders"}}, "status": {"state": "Active", "target": "http://settle:8080/", "reason": "TargetUnreachable",
                "delivered": 4, "backlog": 3, "failedAttempts": 2, "deadLetter": {"queue": "orders.dlc", "messages": 0}}}),
        ]
    }

    #[test]
    fn each_kind_has_its_table() {
        let lines = render(&items(), false, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(lines[0], "NAME     QUEUE            TYPE     MESSAGES   CONSUMERS   READY   REASON   AGE");
        assert_eq!(lines[1], "orders   default.orders   Quorum   3          1           True    Ready    <none>");
        assert_eq!(lines[2], "");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&lines[3]).join(" "), "NAME STORE TARGET STATE DELIVERED BACKLOG DLC READY REASON AGE");
        assert_eq!(
            words(&lines[4]).join(" "),
            "shop/settle orders http://settle:8080/ Active 4 3 0 Unknown TargetUnreachable 60s"
        );
    }

    #[test]
    fn wide_shows_more() {
        let lines = render(&items(), true, Timestamp::UNIX_EPOCH);
        assert!(lines[3].contains("FAILED") && lines[3].contains("LAST-DELIVERY"));
    }
}
