//! Faults injected into the real binary under load, with the message checker on.
//!
//! These use the machine up, so they stand apart from the scenarios, which measure times.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod faults {
    mod crash;
    mod disk;
    mod flapping;
    mod load;
    mod overload;
    mod reload;
    mod shutdown;
}
