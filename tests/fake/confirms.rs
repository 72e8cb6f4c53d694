//! A18: who is told what, when confirms come out of order, several at once, twice, or for what was never published.

use super::common::{PATIENCE, QUEUE, Told, rig, rig_that_waits};
use crate::support::{eventually, millis, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirms_out_of_order_reach_those_whom_they_are_for() {
    let rig = rig().await;
    rig.after(5, |came| {
        came[3].ack();
        came[1].nack();
        came[4].ack();
        came[0].ack();
        came[2].nack();
    });
    let told = rig.publish(["1", "2", "3", "4", "5"]).await;
    assert_eq!(told, [Told::Ok, Told::Refused, Told::Refused, Told::Ok, Told::Ok]);
    assert_eq!(rig.broker.connections(), 2, "nothing was wrong with any of it");
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_confirm_for_several_covers_those_up_to_it_that_have_none_yet() {
    let rig = rig().await;
    rig.after(6, |came| {
        came[1].nack();
        came[3].ack_up_to();
        came[5].line.nack(came[5].channel, came[5].tag, true);
    });
    let told = rig.publish(["1", "2", "3", "4", "5", "6"]).await;
    assert_eq!(told, [Told::Ok, Told::Refused, Told::Ok, Told::Ok, Told::Refused, Told::Refused]);
    assert_eq!(rig.broker.connections(), 2);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_for_several_does_not_reach_beyond_its_tag() {
    let rig = rig_that_waits(PATIENCE).await;
    rig.after(4, |came| came[1].ack_up_to());
    let told = rig.publish(["1", "2", "3", "4"]).await;
    assert_eq!(told, [Told::Ok, Told::Ok, Told::Unknown, Told::Unknown]);
    rig.recovers().await;
}

/// `multiple` with tag 0 means "all so far", which is not said of what the broker has not read yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_of_all_so_far_promises_nothing_to_those_that_the_broker_has_not_read() {
    let rig = rig_that_waits(PATIENCE).await;
    let mut first = true;
    rig.broker.at_publish(move |published| {
        if std::mem::take(&mut first) {
            // The others are on their way; only this one has been read.
            std::thread::sleep(millis(300));
            published.line.ack(published.channel, 0, true);
            std::thread::sleep(millis(300));
            published.line.reset();
        }
    });
    let told = rig.publish(["1", "2", "3", "4"]).await;
    assert_eq!(told[1..], [Told::Unknown; 3], "the broker has not seen any of these");
    assert!(matches!(told[0], Told::Ok | Told::Unknown));
    assert!(rig.broker.bodies(QUEUE).is_empty());
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_of_none_is_nobodys() {
    let rig = rig().await;
    rig.after(3, |came| came[0].line.ack(came[0].channel, 0, false));
    assert_eq!(rig.publish(["1", "2", "3"]).await, [Told::Unknown; 3]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_for_what_was_never_published_ends_the_connection_and_confirms_nothing() {
    for multiple in [false, true] {
        for nack in [false, true] {
            let rig = rig().await;
            rig.after(3, move |came| {
                let (line, next) = (&came[0].line, came[2].tag + 1);
                if nack {
                    line.nack(came[0].channel, next, multiple);
                } else {
                    line.ack(came[0].channel, next, multiple);
                }
            });
            let told = rig.publish(["1", "2", "3"]).await;
            assert_eq!(told, [Told::Unknown; 3], "multiple: {multiple}, nack: {nack}");
            rig.recovers().await;
            assert!(rig.broker.connections() > 2, "it was rebuilt");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_confirm_twice_is_an_error_for_all_that_have_none() {
    for nack in [false, true] {
        let rig = rig().await;
        rig.after(3, move |came| {
            came[0].ack();
            if nack {
                came[0].nack();
            } else {
                came[0].ack();
            }
            // Too late: nothing on this channel counts any more.
            came[1].nack();
        });
        let told = rig.publish(["1", "2", "3"]).await;
        assert_eq!(told[0], Told::Ok, "it was confirmed, nack: {nack}");
        assert_eq!(told[1..], [Told::Unknown; 2], "nack: {nack}");
        rig.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_that_comes_late_is_not_credited_to_another() {
    let rig = rig_that_waits(PATIENCE).await;
    let mut held = Vec::new();
    rig.broker.at_publish(move |published| {
        held.push(published.clone());
        if let [late, asking] = &held[..] {
            // Of the first, whose caller was told that it is not known; and then what became of the second.
            late.ack();
            asking.nack();
        }
    });
    assert_eq!(rig.publish(["late"]).await, [Told::Unknown]);
    assert_eq!(rig.publish(["asking"]).await, [Told::Refused]);
    assert_eq!(rig.broker.connections(), 2, "a late confirm is no fault");
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_on_a_channel_that_there_is_not_confirms_nothing() {
    let rig = rig_that_waits(PATIENCE).await;
    rig.after(2, |came| came[0].line.ack(came[0].channel + 7, came[1].tag, true));
    assert_eq!(rig.publish(["1", "2"]).await, [Told::Unknown; 2]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_back_is_unroutable_whatever_its_confirm_says() {
    let rig = rig().await;
    rig.after(4, |came| {
        came[2].give_back();
        came[0].ack();
        came[1].ack();
        came[2].ack();
        came[3].ack();
    });
    let told = rig.publish(["1", "2", "3", "4"]).await;
    assert_eq!(told, [Told::Ok, Told::Ok, Told::Unroutable, Told::Ok]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_that_is_sent_back_is_told_apart_under_one_confirm() {
    let rig = rig().await;
    rig.after(5, |came| {
        came[3].give_back();
        came[1].give_back();
        came[4].ack_up_to();
    });
    let told = rig.publish(["1", "2", "3", "4", "5"]).await;
    assert_eq!(told, [Told::Ok, Told::Unroutable, Told::Ok, Told::Unroutable, Told::Ok]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_sent_back_and_refused_is_not_stored() {
    let rig = rig().await;
    rig.after(2, |came| {
        came[0].give_back();
        came[1].line.nack(came[1].channel, came[1].tag, true);
    });
    let told = rig.publish(["1", "2"]).await;
    assert_eq!(told, [Told::Unroutable, Told::Refused]);
    rig.recovers().await;
}

/// A broker that says of its stored messages that they are not would be believed by whoever looks only at the count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_sent_back_without_having_been_sent_ends_the_connection() {
    let rig = rig().await;
    rig.after(2, |came| {
        came[0].ack();
        // Its caller has had his answer by now.
        std::thread::sleep(millis(100));
        came[0].give_back();
        came[1].ack();
    });
    let told = rig.publish(["1", "2"]).await;
    assert_eq!(told, [Told::Ok, Told::Unknown]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_never_confirms_keeps_nobody_waiting_and_nothing_is_counted_as_stored() {
    let rig = rig_that_waits(PATIENCE).await;
    rig.broker.at_publish(|_| {});
    let begun = tokio::time::Instant::now();
    assert_eq!(rig.publish(["1", "2", "3"]).await, [Told::Unknown; 3]);
    assert!(begun.elapsed() < PATIENCE * 2, "{:?}", begun.elapsed());
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_closed_over_one_message_leaves_the_others_unknown_and_names_the_one_next_time() {
    let rig = rig().await;
    rig.broker.at_publish(|published| {
        if published.id() == "bad" {
            published.line.close_channel(published.channel, 406, "PRECONDITION_FAILED - not this one");
        } else if published.id() != "1" {
            published.take();
        }
    });
    assert_eq!(rig.publish(["1", "bad"]).await, [Told::Unknown; 2]);
    // Alone now: it is known whom the broker means, and nobody else pays for it.
    let [bad, other] = rig.publish(["bad", "other"]).await;
    let [bad, other] =
        [bad, if other == Told::NotConnected { rig.publish_when_connected("other").await } else { other }];
    let bad = if bad == Told::NotConnected { rig.publish_when_connected("bad").await } else { bad };
    assert_eq!([bad, other], [Told::Refused, Told::Ok]);
    assert_eq!(rig.broker.connections(), 2, "a channel was rebuilt, not the connection");
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_closed_for_a_missing_exchange_tells_nobody_that_it_is_stored() {
    let rig = rig().await;
    rig.after(3, |came| {
        came[0].ack();
        came[2].line.close_channel(came[2].channel, 404, "NOT_FOUND - no exchange 'keys' in vhost '/'");
    });
    let told = rig.publish(["1", "2", "3"]).await;
    assert_eq!(told, [Told::Ok, Told::Unknown, Told::Unknown]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_stopped_says_so_and_is_found_again() {
    let rig = rig().await;
    rig.after(3, |came| {
        came[0].store();
        came[0].ack();
        came[2].line.close_connection(320, "CONNECTION_FORCED - broker forced connection closure");
    });
    let told = rig.publish(["1", "2", "3"]).await;
    assert_eq!(told, [Told::Ok, Told::Unknown, Told::Unknown]);
    rig.recovers().await;
    assert!(rig.broker.bodies(QUEUE).contains(&b"1".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_stays_right_over_many_confirms_in_pieces() {
    let rig = rig().await;
    // Odd ones are refused, some come alone, most with others; every seventh is sent back.
    let mut came = Vec::new();
    rig.broker.at_publish(move |published| {
        let number: u64 = published.id().parse().unwrap();
        if number.is_multiple_of(7) {
            published.give_back();
        }
        came.push(published.clone());
        if came.len() == 10 {
            for one in came.iter().rev().filter(|one| one.id().parse::<u64>().unwrap() % 2 == 1) {
                one.nack();
            }
            came.last().unwrap().ack_up_to();
            came.clear();
        }
    });
    for round in 0..20_u64 {
        let ids: [String; 50] = std::array::from_fn(|n| (round * 50 + n as u64).to_string());
        let told = rig.publish::<50>(std::array::from_fn(|n| ids[n].as_str())).await;
        for (id, told) in ids.iter().zip(told) {
            let number: u64 = id.parse().unwrap();
            let right = match number {
                n if n.is_multiple_of(7) => Told::Unroutable,
                n if n % 2 == 1 => Told::Refused,
                _ => Told::Ok,
            };
            assert_eq!(told, right, "{id}");
        }
    }
    assert_eq!(rig.broker.connections(), 2);
    eventually("the connections stand", seconds(1), || (rig.broker.lines().len() == 2).then_some(()));
}
