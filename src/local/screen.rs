//! The live table on a terminal.
//!
//! Inputs: the items of the status. Output: rows on the console, drawn again only when one of them changed. Reading
//! the status costs a few reads of the store, so while nothing happens it is read more and more rarely.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::supervisor::Supervisor;
use super::table::align;
use crate::telemetry::console;

/// While numbers change.
const FAST: Duration = Duration::from_millis(500);

/// While nothing happens. A change is then shown this much later at most.
const SLOW: Duration = Duration::from_secs(4);

/// Keeps the table up to date. Never ends by itself; the table is taken away by [`clear`].
pub(super) async fn keep(supervisor: Arc<Supervisor>) {
    let mut shown = Vec::new();
    let mut wait = FAST;
    loop {
        let rows = rows(&supervisor.items().await);
        if rows == shown {
            wait = (wait * 2).min(SLOW);
        } else {
            console::show(rows.clone());
            shown = rows;
            wait = FAST;
        }
        sleep(wait).await;
    }
}

/// Takes the table away; what was printed stays.
pub(super) fn clear() {
    console::show(Vec::new());
}

/// One row for each object, under a row of titles.
pub(super) fn rows(items: &[Value]) -> Vec<String> {
    let title = ["OBJECT", "STATE", "DELIVERED", "BACKLOG", "DLC", "LAST FAILURE"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(title).chain(items.iter().map(row)).collect();
    align(&rows)
}

fn row(item: &Value) -> Vec<String> {
    let status = &item["status"];
    let (kind, delivered, backlog) = match item["kind"].as_str() {
        Some("MessageStore") => ("mstore", String::new(), number(&status["messages"])),
        Some("IngressRoute") => ("iroute", format!("{} accepted", number(&status["accepted"])), String::new()),
        _ => ("fwp", number(&status["delivered"]), number(&status["backlog"])),
    };
    let state = match status["state"].as_str() {
        Some("Pending") | None => ready(status),
        Some(state) => state.to_owned(),
    };
    let failure = &status["lastFailure"];
    let failure = match (failure["time"].as_str(), failure["message"].as_str()) {
        (Some(time), Some(message)) => format!("{} {message}", time.get(11..19).unwrap_or(time)),
        _ => String::new(),
    };
    let name = item["metadata"]["name"].as_str().unwrap_or_default();
    vec![format!("{kind}/{name}"), state, delivered, backlog, number(&status["deadLetter"]["messages"]), failure]
}

/// `Ready`, or why not.
fn ready(status: &Value) -> String {
    let conditions = status["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
    match found {
        Some(ready) if ready["status"] == "True" => "Ready".to_owned(),
        Some(ready) => ready["reason"].as_str().unwrap_or("NotReady").to_owned(),
        None => "Pending".to_owned(),
    }
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(String::new, |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_object_is_one_row() {
        let items = [
            json!({"kind": "MessageStore", "metadata": {"name": "orders"}, "status": {"messages": 2,
                "conditions": [{"type": "Ready", "status": "True"}]}}),
            json!({"kind": "IngressRoute", "metadata": {"name": "front"}, "status": {"accepted": 5,
                "conditions": [{"type": "Ready", "status": "False", "reason": "BrokerDown"}]}}),
            json!({"kind": "ForwardingProcessor", "metadata": {"name": "settle"}, "status": {"state": "Active",
                "delivered": 3, "backlog": 2, "deadLetter": {"messages": 1},
                "lastFailure": {"time": "2026-01-01T10:11:12.5Z", "message": "status 500"}}}),
        ];
        assert_eq!(
            rows(&items),
            [
                "OBJECT          STATE        DELIVERED    BACKLOG   DLC   LAST FAILURE",
                "mstore/orders   Ready                     2",
                "iroute/front    BrokerDown   5 accepted",
                "fwp/settle      Active       3            2         1     10:11:12 status 500",
            ]
        );
    }
}
