//! Faults of the broker, and of ours at the broker: the real binary on real RabbitMQ brokers, under load, with the
//! message checker on. `STAGEPOST_TEST_RABBITMQ` names the version; without it everything here is left out.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(dead_code)]

mod support;

use support::rabbitmq;

mod broker {
    mod alarms;
    mod callers;
    mod client;
    mod cluster;
    mod common;
    mod competing;
    mod confirms;
    mod dead_letters;
    mod facts;
    mod failover;
    mod foreign;
    mod interop;
    mod meddling;
    mod outages;
    mod permissions;
    mod proxy;
    mod records;
    mod soak;
    mod stopping;
    mod tls;
    mod traffic;
    mod workers;
    mod wrong_input;
}
