//! What a message costs on its way in and on its way out, in instructions: counted by valgrind in the real program, and
//! held to committed figures. More than a tenth above them fails, and names the functions that grew most.
//!
//! Instructions and not time: they say the same on a busy machine. Only the program is counted; the broker (`fake`),
//! the caller and the target are threads of this process. Each path is counted with few messages and with many. The
//! difference is what messages cost, without the start and the end of a process.
//!
//! `tests/callgrind/count` builds what is counted and runs this; with `UPDATE=1` it writes the figures anew.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(dead_code)]

mod support;

mod fake {
    pub(crate) mod broker;
    mod line;
    mod session;
}

mod callgrind {
    mod figures;
    mod paths;
    mod profile;
}
