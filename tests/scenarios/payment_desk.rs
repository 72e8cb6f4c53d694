//! S2: the payment desk, with `examples/payment-desk`.

use crate::support::{Recorder, Reply, Setup, Stagepost, manifest, millis, seconds};

const PATH: &str = "/healthcare/categories/surgery/reserve";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const PAYMENT: &[u8] = include_bytes!("../../examples/payment-desk/messages/payment.json");
/// What the settlement gets: built by the route's transform.
const ORDER: &str = concat!(
    r#"{"appointmentNumber":1,"doctor":{"name":"thomas collins","hospital":"grand oak community hospital","#,
    r#""category":"surgery"},"patient":{"name":"John Doe","dob":"1940-03-19","ssn":"234-23-525"},"#,
    r#""fee":7000.0,"confirmed":false,"card_number":"7844481124110331"}"#
);
const SETTLED: &str = r#"{"appointmentNo":1,"doctorName":"thomas collins","patient":"John Doe","actualFee":7000.0,"discount":20,"discounted":5600.0,"paymentID":"9ae4f8ed","status":"Settled"}"#;

fn desk(settlement: &Recorder) -> Stagepost {
    Setup::example("payment-desk").service("settlement", &settlement.url()).start()
}

#[test]
fn m1_a_payment_is_transformed_stored_settled_and_its_answer_kept() {
    let settlement =
        Recorder::answering(|_| Reply::full(200, &[("Content-Type", "application/json")], SETTLED.as_bytes()));
    let desk = desk(&settlement);
    let answer = desk.post(PATH, &[JSON], PAYMENT);
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.text(),
        r#"{"message":"Payment request successfully submitted. Payment confirmation will be sent via email."}"#
    );
    let hit = settlement.await_hits(1, seconds(5)).remove(0);
    assert_eq!((hit.method.as_str(), hit.path.as_str()), ("POST", "/healthcare/payments"));
    assert_eq!(hit.text(), ORDER);
    desk.await_depth("settled-payments", 1, seconds(10));
    desk.await_depth("payment-requests", 0, seconds(10));
    desk.await_log(&["settle-payment", "9ae4f8ed"], seconds(10));
    settlement.stays_at(1, millis(500));

    // The answer is a message of its own, with its request's correlation.
    let id = answer.header("stagepost-message-id").unwrap();
    let mail = Recorder::start();
    desk.write("mail.yaml", &manifest::processor("mail", "settled-payments", &mail.url(), ""));
    let letter = mail.await_hits(1, seconds(5)).remove(0);
    assert_eq!(letter.text(), SETTLED);
    assert_eq!(letter.header("content-type").as_deref(), Some("application/json"));
    assert_eq!(letter.header("stagepost-correlation-id"), Some(id.clone()));
    assert_ne!(letter.header("stagepost-message-id"), Some(id));
}

#[test]
fn m4_a_settlement_that_fails_is_tried_four_times_then_the_desk_stops_and_keeps_it() {
    let settlement = Recorder::statuses(&[500]);
    let desk = desk(&settlement);
    assert_eq!(desk.post(PATH, &[JSON], PAYMENT).status, 200);
    let hits = settlement.await_hits(4, seconds(8));
    for pair in hits.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(950) && gap <= millis(1400), "a gap of {gap:?}");
    }
    let status = desk.await_state("settle-payment", "Deactivated", seconds(1));
    assert_eq!(status["deactivation"]["attempts"], 4);
    desk.await_depth("payment-requests", 1, seconds(1));
    settlement.stays_at(4, seconds(3));
}

#[test]
fn m8_a_success_without_content_type_or_with_a_broken_body_is_a_success() {
    for answer in [
        Reply::status(204),
        Reply::full(200, &[("Content-Type", "text/xml")], b"<payment><status>Settled</pay"),
        Reply::full(200, &[], b"\xff\xfe\x00"),
    ] {
        let settlement = Recorder::answering(move |_| answer.clone());
        let desk = desk(&settlement);
        desk.post(PATH, &[JSON], PAYMENT);
        settlement.await_hits(1, seconds(5));
        desk.await_status("ForwardingProcessor", "settle-payment", seconds(2), |status| status["delivered"] == 1);
        desk.await_depth("payment-requests", 0, seconds(2));
        settlement.stays_at(1, seconds(1));
        assert_eq!(desk.processor("settle-payment")["failedAttempts"], 0);
    }
}

#[test]
fn a_payment_that_the_transform_cannot_read_is_refused_and_not_stored() {
    let settlement = Recorder::start();
    let desk = desk(&settlement);
    assert_eq!(desk.post(PATH, &[JSON], r#"{"name": "no doctor"}"#).status, 400);
    assert_eq!(desk.post(PATH, &[JSON], "{").status, 400);
    settlement.stays_at(0, millis(300));
    assert_eq!(desk.depth("payment-requests"), 0);
}
