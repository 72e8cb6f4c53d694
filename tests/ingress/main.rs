//! The ingress as a black box: raw bytes over TCP, and a scripted store behind it.

mod harness;

mod answers;
