//! What every store must keep, as sentences. Each implementation runs exactly the same suite: implement
//! [`subject::Subject`] for it, and name it in one more `suite!`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "contract/consuming.rs"]
mod consuming;
#[path = "contract/limits.rs"]
mod limits;
#[path = "contract/records.rs"]
mod records;
#[path = "contract/routing.rs"]
mod routing;
#[path = "contract/storing.rs"]
mod storing;
#[path = "contract/subject.rs"]
mod subject;

#[path = "support/rabbitmq.rs"]
mod broker;

/// Makes one test of each sentence for one kind of store.
macro_rules! suite {
    ($kind:ident, $subject:ty, { $($part:ident: [$($sentence:ident),* $(,)?]),* $(,)? }) => {
        mod $kind {
            use crate::subject::Subject;

            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $sentence() {
                    if let Some(missing) = <$subject>::missing() {
                        crate::broker::leave_out(missing);
                        return;
                    }
                    let within = std::time::Duration::from_secs(60);
                    let subject = <$subject>::start().await;
                    tokio::time::timeout(within, crate::$part::$sentence(subject)).await.expect("ends within a minute");
                }
            )*)*
        }
    };
}

/// The sentences, listed once for all kinds.
macro_rules! every_sentence {
    ($kind:ident, $subject:ty) => {
        suite!($kind, $subject, {
            storing: [
                a_message_comes_back_as_it_was_stored,
                odd_headers_and_bytes_come_back_unchanged,
                a_body_of_15_mib_comes_back_unchanged,
                a_body_that_no_store_takes_is_invalid,
                what_was_stored_survives_a_restart,
                a_publish_whose_caller_went_away_is_carried_through,
                the_connection_is_up,
            ],
            consuming: [
                messages_come_in_the_order_in_which_they_were_stored,
                what_a_dropped_consumer_held_comes_again_in_order_and_says_so,
                what_was_given_back_comes_before_what_was_behind_it,
                what_was_acknowledged_before_a_give_back_does_not_come_again,
                many_that_were_acknowledged_one_by_one_before_a_give_back_do_not_come_again,
                a_consumer_that_stopped_taking_settles_what_it_has_and_gets_no_more,
                what_was_acknowledged_does_not_come_again_after_a_restart,
                what_was_not_acknowledged_comes_again_after_a_restart,
                no_more_than_the_prefetch_is_handed_out,
                a_dropped_wait_loses_nothing,
                a_waiting_consumer_is_woken_by_a_publish,
                an_unknown_tag_is_refused,
                gaps_between_acknowledged_messages_are_kept,
                messages_may_be_acknowledged_in_any_order,
                a_large_backlog_comes_in_order_and_once,
                competing_consumers_get_each_message_once,
                consumers_that_wait_side_by_side_share_what_comes,
                the_second_of_single_active_consumers_waits_for_the_first,
                the_depth_counts_what_is_ready_and_who_consumes,
            ],
            limits: [
                a_queue_at_its_maximum_length_refuses_and_has_room_again_after_an_ack,
                what_is_in_a_consumers_hands_counts_towards_the_length_or_not,
                a_queue_at_its_maximum_bytes_refuses_and_has_room_again_after_an_ack,
                one_full_queue_of_an_exchange_refuses_for_all_of_them,
                what_was_accepted_is_exactly_what_is_stored,
            ],
            routing: [
                a_key_that_no_queue_is_bound_to_is_unroutable,
                the_default_exchange_routes_by_queue_name,
                a_direct_exchange_routes_by_exact_key,
                a_topic_exchange_routes_by_pattern_and_once_a_queue,
                a_fanout_exchange_routes_to_every_queue,
                a_publish_only_store_publishes_and_has_nothing_to_consume,
                a_binding_that_left_the_topology_is_unbound,
                a_binding_that_another_store_made_stays,
                bindings_and_queues_survive_a_restart,
                a_queue_with_other_arguments_is_a_mismatch_that_names_them,
                an_exchange_of_another_type_is_a_mismatch,
                declaring_the_same_again_changes_nothing,
            ],
            records: [
                there_is_no_deactivation_record_at_first,
                a_deactivation_record_survives_a_restart,
                the_first_deactivation_record_stays,
                reactivation_removes_the_record_for_good,
                records_of_two_processors_are_apart,
            ],
        });
    };
}

every_sentence!(embedded, crate::subject::Embedded);
every_sentence!(rabbitmq_classic, crate::subject::Rabbit<false>);
every_sentence!(rabbitmq_quorum, crate::subject::Rabbit<true>);
