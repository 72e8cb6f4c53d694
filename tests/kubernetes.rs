//! The operator on a real Kubernetes: installed by its chart, with RabbitMQ and the target in pods.
//!
//! `tests/cluster/cluster` brings the cluster up; these tests run in its node's network, where pods and Services are
//! reached. `tests/all.sh` does both. `STAGEPOST_TEST_CLUSTER` says that a cluster is there; without it all of this is
//! left out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod kubernetes {
    mod apart;
    mod cluster;
    mod conflicts;
    mod controller;
    mod deactivation;
    mod deletion;
    mod delivery;
    mod disruption;
    mod events;
    mod install;
    mod invalid;
    mod references;
    mod request_reply;
    mod rollout;
    mod secrets;
    mod space;
    mod steps;
    mod upgrade;
}
