//! Callers of this process that wait for the answer to what they publish (request-reply).
//!
//! Inputs: message ids of requests, answers from the broker. Outputs: the first answer to each request goes to its
//! caller, who counts it; what comes later, or twice, is counted here and thrown away. Callers are bounded by the ingress; of those that
//! are gone the last [`REMEMBERED`] are known by name.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::core::message::{Message, MessageId};
use crate::telemetry::metrics::RouteMetrics;

/// Requests that have ended and are still known, so that an answer that comes for one is told apart from none.
const REMEMBERED: usize = 4096;

/// The mailbox of one process at one broker.
#[derive(Debug)]
pub struct Mailbox {
    /// The name under which the broker reaches it; `Err`: it does not now, because of this.
    place: watch::Sender<Result<Arc<str>, String>>,
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    known: HashMap<MessageId, Request>,
    /// Those that have ended, the oldest first.
    ended: VecDeque<MessageId>,
}

#[derive(Debug)]
struct Request {
    metrics: RouteMetrics,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(oneshot::Sender<Message>),
    Answered,
    /// The caller waits no more.
    Gone,
}

/// A caller that waits. Dropped: it waits no more.
#[derive(Debug)]
pub struct Caller {
    /// Where the answer is to be sent.
    pub place: Arc<str>,
    id: MessageId,
    mailbox: Arc<Mailbox>,
    answer: oneshot::Receiver<Message>,
}

/// The connection over which the answer would have come is lost. What became of the request is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection to the broker was lost while the answer was awaited")]
pub struct Lost;

impl Mailbox {
    /// A mailbox that nobody can reach, because of `reason`.
    pub fn closed(reason: &str) -> Self {
        Self { place: watch::Sender::new(Err(reason.to_owned())), requests: Mutex::default() }
    }

    /// It can be reached at `place` from now on.
    pub fn open(&self, place: &str) {
        drop(self.place.send_replace(Ok(place.into())));
    }

    /// Nothing comes any more to where it was. All who wait are told.
    pub fn close(&self, reason: &str) {
        drop(self.place.send_replace(Err(reason.to_owned())));
        let mut requests = self.requests();
        let waiting: Vec<MessageId> = requests
            .known
            .iter()
            .filter(|(_, request)| matches!(request.state, State::Waiting(_)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            requests.end(&id, State::Gone);
        }
    }

    /// Whether it is reached at this place.
    pub fn is_at(&self, place: &str) -> bool {
        self.place.borrow().as_deref().is_ok_and(|here| here == place)
    }

    /// Enters a caller, before the request is published. Waits for a place until `until`; then it fails, with the
    /// reason why there is none.
    pub async fn enter(
        self: &Arc<Self>,
        id: &MessageId,
        metrics: RouteMetrics,
        until: Instant,
    ) -> Result<Caller, String> {
        let mut place = self.place.subscribe();
        let found = timeout_at(until, place.wait_for(Result::is_ok)).await.map(|found| found.map(|ok| ok.clone()));
        let place = match found {
            Ok(Ok(Ok(place))) => place,
            Ok(Ok(Err(reason))) => return Err(reason),
            // Closed for good, or not open in time.
            Ok(Err(_)) | Err(_) => return Err(self.place.borrow().clone().err().unwrap_or_default()),
        };
        let (sender, answer) = oneshot::channel();
        let request = Request { metrics, state: State::Waiting(sender) };
        let mut requests = self.requests();
        if requests.known.insert(id.clone(), request).is_some() {
            // Tried again: what ended before must not end this one.
            requests.ended.retain(|ended| ended != id);
        }
        drop(requests);
        let caller = Caller { place: place.clone(), id: id.clone(), mailbox: Arc::clone(self), answer };
        // Closed between the two: whoever closed it has not seen this caller.
        if self.is_at(&place) { Ok(caller) } else { Err("the connection to the broker was lost".to_owned()) }
    }

    /// An answer has come.
    pub fn take_in(&self, answer: Message) {
        let id = MessageId::new(answer.correlation_id());
        let mut requests = self.requests();
        let Some(request) = requests.known.get_mut(&id) else {
            tracing::debug!(correlation_id = %id, "an answer to a request that nobody here remembers");
            return;
        };
        match &request.state {
            State::Answered => request.metrics.reply("duplicate"),
            State::Gone => request.metrics.reply("late"),
            State::Waiting(_) => {
                if let Some(State::Waiting(caller)) = requests.end(&id, State::Answered) {
                    // One that leaves at this moment is counted as such.
                    let _ = caller.send(answer);
                }
            }
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// Ends the wait of a caller. `None`: it had ended before.
    fn end(&mut self, id: &MessageId, how: State) -> Option<State> {
        let request = self.known.get_mut(id).filter(|request| matches!(request.state, State::Waiting(_)))?;
        let before = std::mem::replace(&mut request.state, how);
        self.ended.push_back(id.clone());
        while self.ended.len() > REMEMBERED {
            if let Some(oldest) = self.ended.pop_front() {
                self.known.remove(&oldest);
            }
        }
        Some(before)
    }
}

impl Caller {
    /// Waits for the answer. Cancel safe.
    pub async fn answer(&mut self) -> Result<Message, Lost> {
        (&mut self.answer).await.map_err(|_| Lost)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.mailbox.requests().end(&self.id, State::Gone);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn mailbox() -> (Arc<Mailbox>, RouteMetrics) {
        let mailbox = Arc::new(Mailbox::closed("not yet"));
        mailbox.open("here");
        (mailbox, Metrics::default().route("n/r"))
    }

    fn answer(to: &str, body: &'static str) -> Message {
        let mut answer = Message::new(MessageId::new("of its own"), body);
        answer.correlation_id = Some(to.to_owned());
        answer
    }

    async fn enter(mailbox: &Arc<Mailbox>, metrics: &RouteMetrics, id: &str) -> Caller {
        mailbox.enter(&MessageId::new(id), metrics.clone(), Instant::now()).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_gets_the_first_answer_to_their_own_request() {
        let (mailbox, metrics) = mailbox();
        let (mut a, mut b) = (enter(&mailbox, &metrics, "a").await, enter(&mailbox, &metrics, "b").await);
        assert_eq!(&*a.place, "here");
        for (to, body) in [("b", "for b"), ("a", "for a"), ("a", "again"), ("c", "for nobody")] {
            mailbox.take_in(answer(to, body));
        }
        assert_eq!(a.answer().await.unwrap().body, "for a");
        assert_eq!(b.answer().await.unwrap().body, "for b");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_when_the_place_is_lost_is_told_and_who_comes_then_waits_for_the_next() {
        let (mailbox, metrics) = mailbox();
        let mut caller = enter(&mailbox, &metrics, "a").await;
        mailbox.close("gone");
        assert_eq!(caller.answer().await.unwrap_err(), Lost);
        mailbox.take_in(answer("a", "too late"));
        let soon = Instant::now() + Duration::from_secs(1);
        let refused = mailbox.enter(&MessageId::new("b"), metrics.clone(), soon).await;
        assert_eq!(refused.unwrap_err(), "gone");
        let later = mailbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            later.open("there");
        });
        let soon = Instant::now() + Duration::from_secs(1);
        let caller = mailbox.enter(&MessageId::new("c"), metrics, soon).await.unwrap();
        assert_eq!(&*caller.place, "there");
        assert!(mailbox.is_at("there") && !mailbox.is_at("here"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_enters_again_is_not_ended_by_the_first_time() {
        let (mailbox, metrics) = mailbox();
        drop(enter(&mailbox, &metrics, "a").await);
        let mut again = enter(&mailbox, &metrics, "a").await;
        for number in 0..REMEMBERED + 10 {
            drop(enter(&mailbox, &metrics, &number.to_string()).await);
        }
        mailbox.take_in(answer("a", "for a"));
        assert_eq!(again.answer().await.unwrap().body, "for a");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_are_gone_take_a_bounded_room() {
        let (mailbox, metrics) = mailbox();
        for number in 0..REMEMBERED + 10 {
            drop(enter(&mailbox, &metrics, &number.to_string()).await);
        }
        assert_eq!(mailbox.requests().known.len(), REMEMBERED);
        assert_eq!(mailbox.requests().ended.len(), REMEMBERED);
    }
}
