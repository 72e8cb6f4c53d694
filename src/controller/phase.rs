//! Whether a processor shall run, and what must be done before it may. Pure.
//!
//! A deactivation is a record on the broker, which a worker finds when it starts; the status only repeats it. It ends
//! when the record is removed, and never in a crash between two steps: the record goes first, then the status says so,
//! then pods start.

use crate::api::processor_status::ProcessorState;

/// What is known of a processor that is valid and complete.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known<'a> {
    /// `spec.suspend`.
    pub(super) suspend: bool,
    /// `spec.workload.replicas`.
    pub(super) replicas: u32,
    /// The annotation that asks for reactivation.
    pub(super) annotation: Option<&'a str>,
    /// The state in the status; none of an object that was never seen.
    pub(super) state: Option<ProcessorState>,
    /// The annotation's value that was handled last.
    pub(super) handled: Option<&'a str>,
    /// A worker has said that it is deactivated.
    pub(super) worker_deactivated: bool,
    /// Pods are there, also such that are ending.
    pub(super) has_pods: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No pods, because the user says so.
    Suspended,
    /// No pods, because it stopped itself.
    Deactivated,
    /// No pods yet: those that are there must end first, for they could act on the record.
    Ending,
    /// No pods yet: the record of a deactivation must go.
    Purging,
    /// As many pods as the user says.
    Running,
}

impl Phase {
    pub(super) fn of(known: Known<'_>) -> Self {
        if known.suspend {
            return Self::Suspended;
        }
        let was_suspended = known.state == Some(ProcessorState::Suspended);
        // What is already there when an object is first seen was meant for an earlier one.
        let is_asked = known.annotation.is_some() && known.annotation != known.handled && known.state.is_some();
        if was_suspended || is_asked {
            return if known.has_pods && (was_suspended || known.worker_deactivated) {
                Self::Ending
            } else {
                Self::Purging
            };
        }
        if known.worker_deactivated || known.state == Some(ProcessorState::Deactivated) {
            return Self::Deactivated;
        }
        Self::Running
    }

    /// How many pods there shall be.
    pub(super) fn replicas(self, known: Known<'_>) -> u32 {
        match self {
            Self::Running => known.replicas,
            // A processor that works is not stopped for an annotation that has nothing to end.
            Self::Purging if known.has_pods => known.replicas,
            Self::Suspended | Self::Deactivated | Self::Ending | Self::Purging => 0,
        }
    }

    /// What the status says.
    pub(super) fn state(self, known: Known<'_>) -> ProcessorState {
        match self {
            Self::Suspended => ProcessorState::Suspended,
            Self::Deactivated => ProcessorState::Deactivated,
            // Until the record is gone, it is what it was.
            Self::Ending | Self::Purging => known.state.unwrap_or(ProcessorState::Pending),
            Self::Running if known.replicas == 0 => ProcessorState::Pending,
            Self::Running => ProcessorState::Active,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: Known<'static> = Known {
        suspend: false,
        replicas: 1,
        annotation: None,
        state: Some(ProcessorState::Active),
        handled: None,
        worker_deactivated: false,
        has_pods: true,
    };

    #[test]
    fn a_deactivation_stays_until_it_is_asked_to_end() {
        let reported = Known { worker_deactivated: true, ..ACTIVE };
        assert_eq!(Phase::of(reported), Phase::Deactivated);
        let stopped = Known { state: Some(ProcessorState::Deactivated), has_pods: false, ..ACTIVE };
        assert_eq!(Phase::of(stopped), Phase::Deactivated);
        assert_eq!(Phase::of(stopped).replicas(stopped), 0);
        assert_eq!(Phase::of(Known { annotation: Some("1"), ..stopped }), Phase::Purging);
        assert_eq!(Phase::of(Known { annotation: Some("1"), handled: Some("1"), ..stopped }), Phase::Deactivated);
        assert_eq!(Phase::of(Known { annotation: Some("2"), handled: Some("1"), ..stopped }), Phase::Purging);
    }

    #[test]
    fn pods_of_a_deactivated_processor_end_before_its_record_goes() {
        let asked = Known { worker_deactivated: true, annotation: Some("1"), ..ACTIVE };
        assert_eq!(Phase::of(asked), Phase::Ending);
        assert_eq!(Phase::of(asked).replicas(asked), 0);
    }

    #[test]
    fn an_annotation_that_was_there_before_counts_as_handled() {
        let new = Known { state: None, annotation: Some("1"), ..ACTIVE };
        assert_eq!(Phase::of(new), Phase::Running);
    }

    #[test]
    fn a_processor_that_works_goes_on_while_an_annotation_is_handled() {
        let asked = Known { annotation: Some("1"), ..ACTIVE };
        assert_eq!(Phase::of(asked), Phase::Purging);
        assert_eq!(Phase::of(asked).replicas(asked), 1);
    }

    #[test]
    fn the_end_of_a_suspension_ends_a_deactivation_that_nobody_had_seen() {
        let suspended = Known { state: Some(ProcessorState::Suspended), has_pods: false, ..ACTIVE };
        assert_eq!(Phase::of(suspended), Phase::Purging);
        assert_eq!(Phase::of(suspended).replicas(suspended), 0);
        assert_eq!(Phase::of(Known { suspend: true, ..suspended }), Phase::Suspended);
    }
}
