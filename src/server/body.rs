//! Reads the bodies of requests within three limits: their size, the memory of all of them
//! together, and a time that follows what has come.
//!
//! Memory is reserved for bytes that have come, never for those that a client announces, and a body
//! that holds memory waits for more only while a slower one is being cut off: so neither many
//! half-sent bodies nor some of the largest keep a review from being read.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, extract::Request};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// The largest body: API objects reach 3 MiB, and a review of an UPDATE has two.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// The memory for all bodies in flight. A large one takes as much again while its blocks become one
/// piece, part of which the allocator keeps for a while.
pub const BODY_BUDGET_BYTES: usize = 32 * 1024 * 1024;
/// The part of the budget for the first block of each body: most reviews are no larger, and large
/// bodies leave it to them.
const FIRST_BLOCKS_BYTES: usize = 8 * 1024 * 1024;
/// The unit of the budget's permits.
const BUDGET_UNIT_BYTES: usize = 1024;
/// The size of the blocks that hold a body while it is read, and the most that is allocated before
/// the first byte: a client can announce any length at no cost.
const BLOCK_BYTES: usize = 64 * 1024;
/// The timeout of a body, from its head to its last byte.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body may take beyond what its bytes take at [`MIN_BYTES_PER_SECOND`]: packets that
/// are lost twice come after three seconds.
const BODY_GRACE: Duration = Duration::from_secs(3);
/// The rate at which a body has to come. A client in the cluster sends a hundred times as fast.
const MIN_BYTES_PER_SECOND: u64 = 256 * 1024;
/// The lag from which a body counts as stalled and may be cut off for another one.
pub(super) const STALLED_LAG: Duration = Duration::from_millis(500);
/// How long a body waits for memory before it tries again to cut off a stalled one.
const MEMORY_RETRY: Duration = Duration::from_millis(50);

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It exceeds the largest size.
    TooLarge,
    /// The client ended it before it was whole.
    Incomplete,
    /// It came too slowly.
    TooSlow,
    /// The memory for bodies is used up.
    NoMemory,
}

/// Reads bodies into the memory that there is for all of them.
pub(super) struct Bodies {
    first_blocks: Semaphore,
    rest: Semaphore,
    /// The bodies of which a part has come.
    partial: Mutex<Vec<Arc<Partial>>>,
}

/// A whole body and its share of the memory.
pub(super) struct WholeBody<'a> {
    bytes: Bytes,
    _share: Share<'a>,
}

/// A body of which a part has come.
struct Partial {
    started: Instant,
    received: AtomicUsize,
    /// Cuts it off for another one.
    shed: CancellationToken,
}

/// The memory that a body holds, free again when dropped.
#[derive(Default)]
struct Share<'a> {
    first_block: Option<SemaphorePermit<'a>>,
    rest: Option<SemaphorePermit<'a>>,
}

/// A partial body while it is one of [`Bodies::partial`].
struct Listed<'a> {
    bodies: &'a Bodies,
    partial: Arc<Partial>,
}

/// Returns how far a body is behind the rate at which it has to come.
pub(super) fn lag(elapsed: Duration, received: u64) -> Duration {
    elapsed.saturating_sub(time_for(received))
}

/// Returns the time that so many bytes may take.
fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / MIN_BYTES_PER_SECOND)
}

impl Bodies {
    pub(super) fn new() -> Self {
        let units = |bytes: usize| Semaphore::new(bytes / BUDGET_UNIT_BYTES);
        Self {
            first_blocks: units(FIRST_BLOCKS_BYTES),
            rest: units(BODY_BUDGET_BYTES - FIRST_BLOCKS_BYTES),
            partial: Mutex::default(),
        }
    }

    /// Reads the body of a request whose head was complete at `started`.
    pub(super) async fn read(
        &self,
        request: Request,
        started: Instant,
        deadline: Instant,
    ) -> Result<WholeBody<'_>, Unread> {
        let length = length_of(request.headers()).unwrap_or_default();
        if length > MAX_BODY_BYTES {
            return Err(Unread::TooLarge);
        }
        let mut body = request.into_body();
        let by = by(started, 0, deadline);
        let first = match timeout_at(by, next_data(&mut body)).await {
            Ok(Ok(first)) => first,
            Ok(Err(unread)) => return Err(unread),
            Err(_) => return Err(Unread::TooSlow),
        };
        let mut share = Share::default();
        let bytes = first.unwrap_or_default();
        let waiting_since = Instant::now();
        self.grow(&mut share, bytes.len(), deadline).await?;
        // Most bodies come in one piece, which is handled where it is.
        if bytes.is_empty() || body.is_end_stream() {
            return Ok(WholeBody {
                bytes,
                _share: share,
            });
        }
        // The wait for memory is none of the client's time.
        let started = started + waiting_since.elapsed();
        let whole = self.read_rest(bytes, body, length, started, deadline, &mut share);
        let bytes = Bytes::from(whole.await?);
        Ok(WholeBody {
            bytes,
            _share: share,
        })
    }

    /// Reads what follows the first data of a body.
    async fn read_rest<'a>(
        &'a self,
        first: Bytes,
        mut body: Body,
        length: usize,
        started: Instant,
        deadline: Instant,
        share: &mut Share<'a>,
    ) -> Result<Vec<u8>, Unread> {
        let mut read = Blocks::with_capacity(length.max(first.len()));
        read.extend(&first);
        let listed = self.list(started, first.len());
        // It keeps the buffer of the connection.
        drop(first);
        let mut shed = std::pin::pin!(listed.partial.shed.cancelled());
        loop {
            let by = by(started, read.len(), deadline);
            let data = tokio::select! {
                biased;
                data = timeout_at(by, next_data(&mut body)) => data,
                () = shed.as_mut() => return Err(Unread::NoMemory),
            };
            let data = match data {
                Ok(Ok(Some(data))) => data,
                Ok(Ok(None)) => return Ok(read.into_whole()),
                Ok(Err(unread)) => return Err(unread),
                Err(_) => return Err(Unread::TooSlow),
            };
            let size = read.len() + data.len();
            listed.partial.received.store(size, Ordering::Relaxed);
            self.grow(share, size, deadline).await?;
            read.extend(&data);
        }
    }

    /// Has a body hold memory for so many bytes.
    async fn grow<'a>(
        &'a self,
        share: &mut Share<'a>,
        size: usize,
        deadline: Instant,
    ) -> Result<(), Unread> {
        if size > MAX_BODY_BYTES {
            return Err(Unread::TooLarge);
        }
        let Share { first_block, rest } = share;
        let may_wait = first_block.is_none();
        let (first, more) = (size.min(BLOCK_BYTES), size.saturating_sub(BLOCK_BYTES));
        self.add(first_block, first, &self.first_blocks, may_wait, deadline)
            .await?;
        self.add(rest, more, &self.rest, false, deadline).await
    }

    async fn add<'a>(
        &'a self,
        held: &mut Option<SemaphorePermit<'a>>,
        bytes: usize,
        budget: &'a Semaphore,
        may_wait: bool,
        deadline: Instant,
    ) -> Result<(), Unread> {
        let units = held.as_ref().map_or(0, SemaphorePermit::num_permits);
        let more = bytes.div_ceil(BUDGET_UNIT_BYTES).saturating_sub(units);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        let more = match budget.try_acquire_many(more) {
            Ok(permit) => permit,
            Err(_) => self.wait(budget, more, may_wait, deadline).await?,
        };
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }

    /// Waits for permits, and takes them from stalled bodies. A body that holds memory waits for
    /// nothing else: otherwise bodies would wait for each other.
    async fn wait<'a>(
        &self,
        budget: &'a Semaphore,
        units: u32,
        may_wait: bool,
        deadline: Instant,
    ) -> Result<SemaphorePermit<'a>, Unread> {
        loop {
            let is_freeing = self.shed_slowest();
            let now = Instant::now();
            if now >= deadline || !(may_wait || is_freeing) {
                return Err(Unread::NoMemory);
            }
            let retry = deadline.min(now + MEMORY_RETRY);
            if let Ok(acquired) = timeout_at(retry, budget.acquire_many(units)).await {
                return acquired.map_err(|_| Unread::NoMemory);
            }
        }
    }

    /// Cuts off the body that is furthest behind, if one is stalled. Returns whether one is.
    fn shed_slowest(&self) -> bool {
        let now = Instant::now();
        let partial = self.partial();
        let stalled = partial
            .iter()
            .filter(|partial| !partial.shed.is_cancelled())
            .map(|partial| (partial.lag(now), partial))
            .filter(|(lag, _)| *lag >= STALLED_LAG);
        let slowest = stalled.max_by_key(|(lag, _)| *lag);
        slowest
            .inspect(|(_, slowest)| slowest.shed.cancel())
            .is_some()
    }

    fn list(&self, started: Instant, received: usize) -> Listed<'_> {
        let partial = Arc::new(Partial {
            started,
            received: AtomicUsize::new(received),
            shed: CancellationToken::new(),
        });
        self.partial().push(partial.clone());
        Listed {
            bodies: self,
            partial,
        }
    }

    fn partial(&self) -> MutexGuard<'_, Vec<Arc<Partial>>> {
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partial {
    fn lag(&self, now: Instant) -> Duration {
        let received = self.received.load(Ordering::Relaxed);
        let elapsed = now.saturating_duration_since(self.started);
        lag(elapsed, received as u64)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut partial = self.bodies.partial();
        partial.retain(|partial| !Arc::ptr_eq(partial, &self.partial));
    }
}

impl Deref for WholeBody<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns until when the next bytes of a body have to come, of which so many have come.
fn by(started: Instant, received: usize, deadline: Instant) -> Instant {
    let by_rate = BODY_GRACE + time_for(received as u64);
    deadline.min(started + by_rate.min(BODY_TIMEOUT))
}

/// Returns the next data of a body, or nothing at its end.
async fn next_data(body: &mut Body) -> Result<Option<Bytes>, Unread> {
    loop {
        match body.frame().await {
            // A frame without data is a trailer.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
            Some(Err(_)) => return Err(Unread::Incomplete),
            None => return Ok(None),
        }
    }
}

fn length_of(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The part of a body that was read, in blocks of one size. A buffer that doubles leaves smaller
/// ones behind, and a buffer of the whole length may take memory long before it is written to,
/// where pages are huge: either way many bodies together would take several times their length.
struct Blocks {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Blocks {
    /// Returns no blocks, for a body of this announced length.
    fn with_capacity(length: usize) -> Self {
        Self {
            full: Vec::new(),
            last: Vec::with_capacity(length.min(BLOCK_BYTES)),
        }
    }

    fn len(&self) -> usize {
        self.full.len() * BLOCK_BYTES + self.last.len()
    }

    fn extend(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.last.len() == BLOCK_BYTES {
                let next = Vec::with_capacity(BLOCK_BYTES);
                self.full.push(std::mem::replace(&mut self.last, next));
            }
            let (now, later) = data.split_at(data.len().min(BLOCK_BYTES - self.last.len()));
            self.last.extend_from_slice(now);
            data = later;
        }
    }

    /// Returns the body in one buffer; most bodies are one block.
    fn into_whole(self) -> Vec<u8> {
        if self.full.is_empty() {
            return self.last;
        }
        let mut whole = Vec::with_capacity(self.len());
        // Each block is freed as soon as it is copied.
        for block in self.full {
            whole.extend_from_slice(&block);
        }
        whole.extend_from_slice(&self.last);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_in_blocks_is_whole_for_any_frames() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * BLOCK_BYTES + 7).collect();
        for length in [
            0,
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            bytes.len(),
        ] {
            for piece in [1_000, BLOCK_BYTES, BLOCK_BYTES + 1, bytes.len()] {
                let mut blocks = Blocks::with_capacity(length);
                for piece in bytes[..length].chunks(piece) {
                    blocks.extend(piece);
                }
                assert_eq!(blocks.len(), length);
                assert!(
                    blocks.into_whole() == bytes[..length],
                    "{length} by {piece}"
                );
            }
        }
    }

    #[test]
    fn time_of_a_body_follows_what_has_come() {
        let started = Instant::now();
        let deadline = started + Duration::from_mins(1);
        for (received, milliseconds) in [
            (0, 3_000),
            (1, 3_000),
            (1024 * 1024, 7_000),
            (MAX_BODY_BYTES, 10_000),
        ] {
            let limit = by(started, received, deadline) - started;
            assert_eq!(limit, Duration::from_millis(milliseconds), "{received}");
        }
        assert_eq!(by(started, 0, started), started);
    }
}
