//! What may be in flight on one route, and how a body is read under it.
//!
//! A request is admitted by its head, before a byte of its body is read: beyond the bounds the answer is 503 at
//! once, so memory stays bounded and nobody queues up inside the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

/// What is reserved at once for a body that does not come in one piece, at most, in bytes.
const FIRST_RESERVATION: u64 = 64 * 1024;

/// What is in flight on one route. It outlives the route's rules: requests that came under the old ones count against
/// the new bounds.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Bounds of what is in flight, by requests and by bytes.
#[derive(Debug)]
pub(super) struct Budget {
    in_flight: Arc<InFlight>,
    max_requests: u64,
    max_bytes: u64,
}

/// A request's share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    in_flight: Arc<InFlight>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(in_flight: Arc<InFlight>, max_requests: u64, max_bytes: u64) -> Self {
        Self { in_flight, max_requests, max_bytes }
    }

    /// A share of one request and this many bytes, if both are left.
    pub(super) fn admit(&self, bytes: u64) -> Option<Permit> {
        let InFlight { requests, bytes: all_bytes } = &*self.in_flight;
        // Added first and taken back if it was too much: two callers can refuse each other at the very edge, but
        // they never pass the bound together.
        if requests.fetch_add(1, Ordering::Relaxed) >= self.max_requests {
            requests.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if bytes > 0 && all_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.max_bytes {
            all_bytes.fetch_sub(bytes, Ordering::Relaxed);
            requests.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit { in_flight: self.in_flight.clone(), bytes })
    }
}

impl Permit {
    /// Gives back what was reserved beyond the body's true size.
    pub(super) fn shrink(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.in_flight.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

/// Bytes of an answer that was awaited: they count until they are written.
struct Charged {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Permit {
    /// Takes the place of what was reserved, and is given back with the last of these bytes. More than the route allows
    /// is taken all the same, for it is there; new requests with a body are refused then.
    pub(super) fn charge(mut self, bytes: Bytes) -> Bytes {
        let length = bytes.len() as u64;
        self.shrink(length);
        self.in_flight.bytes.fetch_add(length - self.bytes, Ordering::Relaxed);
        self.bytes = length;
        Bytes::from_owner(Charged { bytes, _permit: self })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.in_flight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.in_flight.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// Longer than the limit.
    TooLarge,
    /// Not complete in time.
    TimedOut,
    /// Cut off, or framed wrongly.
    Broken,
}

/// Reads a whole body of at most `limit` bytes within `time`. A body that comes in one piece is not copied.
/// Trailers are thrown away.
pub(super) async fn read<B>(mut body: B, limit: u64, time: Duration) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    timeout(time, collect(&mut body, limit)).await.unwrap_or(Err(BodyError::TimedOut))
}

async fn collect<B>(body: &mut B, limit: u64) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let expected = body.size_hint().exact();
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        length += data.len() as u64;
        if length > limit {
            return Err(BodyError::TooLarge);
        }
        if first.is_empty() && more.is_empty() {
            first = data;
            continue;
        }
        if more.is_empty() {
            let reserved = expected.unwrap_or(length).min(limit).clamp(length, FIRST_RESERVATION.max(length));
            more.reserve(usize::try_from(reserved).unwrap_or(data.len()));
            more.extend_from_slice(&first);
            first = Bytes::new();
        }
        more.extend_from_slice(&data);
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::Frame;
    use proptest::prelude::*;

    #[test]
    fn a_permit_gives_back_what_it_took() {
        let budget = Budget::new(Arc::default(), 2, 100);
        let mut first = budget.admit(60).unwrap();
        assert!(budget.admit(60).is_none());
        first.shrink(10);
        let second = budget.admit(60).unwrap();
        assert!(budget.admit(0).is_none());
        drop((first, second));
        assert!(budget.admit(100).is_some());
        assert!(budget.admit(101).is_none());
        let InFlight { requests, bytes } = &*budget.in_flight;
        assert_eq!((requests.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn what_is_in_flight_counts_against_other_bounds_too() {
        let in_flight: Arc<InFlight> = Arc::default();
        let held = Budget::new(in_flight.clone(), 10, 1000).admit(900);
        let next = Budget::new(in_flight, 2, 1000);
        assert!(next.admit(200).is_none());
        let second = next.admit(100);
        assert!(second.is_some() && next.admit(0).is_none());
        drop(held);
        assert!(next.admit(900).is_some());
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied() {
        let sent = Bytes::from(vec![7; 1000]);
        let read = read(Full::new(sent.clone()), 1000, Duration::from_secs(1)).await.unwrap();
        assert_eq!(read.as_ptr(), sent.as_ptr());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_in_time_is_given_up() {
        let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        assert_eq!(read(body, 10, Duration::from_secs(3)).await, Err(BodyError::TimedOut));
    }

    proptest! {
        #[test]
        fn pieces_come_together_up_to_the_limit(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let whole: Vec<u8> = pieces.concat();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            for limit in [whole.len() as u64, (whole.len() as u64).saturating_sub(1)] {
                let frames = pieces.clone().into_iter().map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::from(piece))));
                let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
                let result = runtime.block_on(read(body, limit, Duration::from_secs(1)));
                if whole.len() as u64 > limit {
                    prop_assert_eq!(result, Err(BodyError::TooLarge));
                } else {
                    prop_assert_eq!(result.unwrap(), Bytes::from(whole.clone()));
                }
            }
        }
    }
}
