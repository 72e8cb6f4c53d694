//! S0: asynchronous messaging, with `examples/appointment-desk`.

use crate::support::{Recorder, Reply, Setup, manifest, millis, seconds};

const PATH: &str = "/healthcare/make_appointment";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const APPOINTMENT: &[u8] = include_bytes!("../../examples/appointment-desk/messages/appointment.json");

fn desk(hospital: &Recorder) -> Setup {
    Setup::example("appointment-desk").service("hospital", &hospital.url())
}

#[test]
fn a0_1_an_appointment_is_answered_at_once_and_reaches_the_hospital_unchanged() {
    let hospital = Recorder::start();
    let desk = desk(&hospital).start();
    let answer = desk.post(PATH, &[JSON], APPOINTMENT);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), r#"{"Message":"Your appointment is successfully placed"}"#);
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"));
    let id = answer.header("stagepost-message-id").expect("the answer names the message");

    let hit = hospital.await_hits(1, seconds(3)).remove(0);
    assert_eq!((hit.method.as_str(), hit.path.as_str()), ("POST", "/grandoaks/categories/surgery/reserve"));
    assert_eq!(hit.body, APPOINTMENT);
    assert_eq!(hit.all("content-type"), [b"application/json"]);
    assert_eq!(hit.header("stagepost-message-id"), Some(id.clone()));
    assert_eq!(hit.header("idempotency-key"), Some(id));
    desk.await_status("ForwardingProcessor", "reserve-appointment", seconds(2), |status| status["delivered"] == 1);
    desk.await_depth("appointments", 0, seconds(2));
    hospital.stays_at(1, millis(500));
}

#[test]
fn a0_1_without_a_response_of_its_own_a_route_answers_202_and_nothing_else() {
    let target = Recorder::start();
    let line = Setup::manifests(manifest::line(&target.url(), "")).start();
    let answer = line.post("/in", &[], "anything");
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    assert_eq!(answer.header("content-length").as_deref(), Some("0"));
    target.await_hits(1, seconds(3));
}

#[test]
fn a0_2_what_is_not_json_is_refused_before_it_is_stored() {
    let hospital = Recorder::start();
    let desk = desk(&hospital).start();
    let answer = desk.post(PATH, &[JSON], "not-json");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.text(), r#"{"Message":"Invalid payload - Not a valid JSON payload"}"#);
    assert_eq!(desk.post(PATH, &[("Content-Type", "text/plain")], APPOINTMENT).status, 415);
    assert_eq!(desk.post(PATH, &[], APPOINTMENT).status, 415);
    assert_eq!(desk.post("/healthcare/elsewhere", &[JSON], APPOINTMENT).status, 404);
    hospital.stays_at(0, millis(500));
    assert_eq!(desk.depth("appointments"), 0);
    assert_eq!(desk.metric("stagepost_stored_total", &[]), 0);
}

#[test]
fn a0_3_with_forwarder_and_hospital_down_appointments_are_accepted_and_delivered_when_both_are_back() {
    let hospital = Recorder::down(|_| Reply::status(200));
    let desk = desk(&hospital).start();
    let whole = std::fs::read_to_string(desk.manifests().join("stagepost.yaml")).unwrap();
    let (without, _) = whole.split_once("---\napiVersion: stagepost.dev/v1alpha1\nkind: ForwardingProcessor").unwrap();
    desk.write("stagepost.yaml", without);
    desk.await_status("ForwardingProcessor", "reserve-appointment", seconds(3), serde_json::Value::is_null);

    assert_eq!(desk.post(PATH, &[JSON], APPOINTMENT).status, 200);
    desk.await_depth("appointments", 1, seconds(2));

    desk.write("stagepost.yaml", &whole);
    desk.await_status("ForwardingProcessor", "reserve-appointment", seconds(5), |status| status["backlog"] == 1);
    std::thread::sleep(seconds(60));
    assert_eq!(desk.processor("reserve-appointment")["state"], "Active");
    hospital.up();
    // The default waits are 1, 2, 4, 8, 16, 32 s, each with a tenth of jitter: the seventh attempt comes 57 to 70 s after
    // the first. If that was just before, the next one comes a minute later.
    let hit = hospital.await_hits(1, seconds(85)).remove(0);
    assert_eq!(hit.body, APPOINTMENT);
    desk.await_depth("appointments", 0, seconds(2));
    assert_eq!(desk.processor("reserve-appointment")["deadLettered"], 0);
}
