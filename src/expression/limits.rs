//! What one evaluation may use: steps by minijinja's fuel, and bytes by the budget kept here.
//!
//! Everything that makes or walks through text charges the budget, so that few steps over large texts end as surely
//! as many steps over small ones. What is charged is never given back: the sum bounds the memory as well.

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Value};

/// Steps of one evaluation, in minijinja's unit: one instruction.
pub(super) const FUEL: u64 = 500_000;
/// Bytes that one evaluation may make or walk through.
const BUDGET: usize = 40 * 1024 * 1024;
/// The longest text, output included, in bytes.
pub(super) const MAX_TEXT: usize = 16 * 1024 * 1024;
/// The most items of a list, and the most repetitions.
pub(super) const MAX_ITEMS: usize = 1024 * 1024;
/// Lists in lists, macros in macros: deeper than any message, shallow enough for a thread's stack.
pub(super) const MAX_DEPTH: usize = 128;
/// What an item of a list costs beside its text.
pub(super) const ITEM: usize = 80;

thread_local! {
    /// What is left for the evaluation that runs on this thread. Outside of one there is no bound: error texts.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Whether the output of the evaluation that runs on this thread is cut off already.
    static OVERFLOWED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one evaluation with a budget of its own.
pub(super) fn within_budget<R>(evaluation: impl FnOnce() -> R) -> R {
    struct Restore(usize, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT.set(self.0);
            OVERFLOWED.set(self.1);
        }
    }
    let _restore = Restore(LEFT.replace(BUDGET), OVERFLOWED.replace(false));
    evaluation()
}

/// The output has no room left. An error of the output itself would lose its place in the template, so it takes the
/// rest without keeping it, and what writes next asks [`check_output`].
pub(super) fn overflow() {
    OVERFLOWED.set(true);
}

/// Fails once the output was longer than [`MAX_TEXT`].
pub(super) fn check_output() -> Result<(), Error> {
    if OVERFLOWED.get() { Err(exceeded("the result is longer than 16 MiB")) } else { Ok(()) }
}

/// Takes bytes from the budget, before the work is done.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get();
    if left == usize::MAX {
        return Ok(());
    }
    let Some(rest) = left.checked_sub(bytes) else { return Err(exceeded("it handles more than 40 MiB of text")) };
    LEFT.set(rest);
    Ok(())
}

/// Charges for walking over text without copying it, which is several times cheaper.
pub(super) fn charge_walk(bytes: usize) -> Result<(), Error> {
    charge(bytes / 2)
}

/// Refuses a text that would be longer than [`MAX_TEXT`], else charges for it.
pub(super) fn charge_text(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEXT { Err(exceeded("a text is longer than 16 MiB")) } else { charge(bytes) }
}

/// Refuses a list that would be longer than [`MAX_ITEMS`], else charges for it.
pub(super) fn charge_items(items: usize) -> Result<(), Error> {
    if items > MAX_ITEMS { Err(exceeded("a list has more than 1048576 items")) } else { charge(items * ITEM) }
}

/// A limit was met.
pub(super) fn exceeded(what: &'static str) -> Error {
    Error::new(ErrorKind::OutOfFuel, what)
}

/// An operation that cannot be done, with the remedy.
pub(super) fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A value for [`minijinja::value::Object`] methods that cannot fail otherwise: using it fails.
pub(super) fn or_invalid(result: Result<Value, Error>) -> Value {
    result.unwrap_or_else(Value::from)
}
