//! The limit of connections, and which of them gives way to a new one.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    body::STALLED_LAG,
    connection_state::{ConnectionState, Use},
};

/// How long a new connection waits for a slot before it tries again to close another one.
const SLOT_RETRY: Duration = Duration::from_millis(50);
/// The connections that wait for their client from which its address gives way before others. An
/// API server keeps at most 25 idle ones.
const MANY: usize = 32;
/// How many times as many as others the connections of one kind are if they are a flood.
const FLOOD_FACTOR: usize = 16;

/// The slots for connections. A client that reaches the port can take all of them, so when none is
/// free, a new connection gets the slot of one that waits for its client ([`rank`]). A request that
/// is handled or answered is never interrupted.
pub(super) struct ConnectionLimit {
    free: Arc<Semaphore>,
    taken: Mutex<Vec<Taken>>,
}

#[derive(Clone)]
struct Taken {
    /// The client's address, or its network where a client has as many addresses as it likes.
    address: IpAddr,
    state: Arc<ConnectionState>,
    shed: CancellationToken,
}

/// A connection's slot, free again when dropped.
pub(super) struct Slot {
    pub(super) state: Arc<ConnectionState>,
    /// Closes the connection.
    pub(super) shed: CancellationToken,
    limit: Arc<ConnectionLimit>,
    _permit: OwnedSemaphorePermit,
}

/// The numbers of connections that wait for their client.
#[derive(Debug, Default)]
struct Waits {
    new: usize,
    requests: usize,
    stalled: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl ConnectionLimit {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(limit)),
            taken: Mutex::default(),
        }
    }

    /// Waits for a slot for a connection from this address.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr) -> Slot {
        let permit = loop {
            if self.free.available_permits() == 0 {
                self.shed_one();
            }
            match timeout(SLOT_RETRY, self.free.clone().acquire_owned()).await {
                Ok(Ok(permit)) => break permit,
                // All were busy; one of them may be idle by now.
                Err(_) => {}
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
            }
        };
        let taken = Taken {
            address: network(address),
            state: Arc::default(),
            shed: CancellationToken::new(),
        };
        self.taken().push(taken.clone());
        Slot {
            state: taken.state,
            shed: taken.shed,
            limit: self.clone(),
            _permit: permit,
        }
    }

    /// Closes the connection that is first to give way, of equals the oldest; none while all are
    /// handled, or one is being closed.
    fn shed_one(&self) {
        let (taken, now) = (self.taken(), Instant::now());
        // Its slot is about to be free: on a busy machine one after the other would be closed.
        if taken.iter().any(|taken| taken.shed.is_cancelled()) {
            return;
        }
        let uses: Vec<_> = taken
            .iter()
            .map(|taken| (taken, taken.state.in_use_for(now)))
            .collect();
        let mut waits = Waits::default();
        for (taken, used) in &uses {
            waits.count(taken.address, *used);
        }
        let ranks = uses
            .iter()
            .filter_map(|(taken, used)| Some((rank(taken, *used, &waits)?, taken)));
        if let Some((_, first)) = ranks.min_by_key(|(rank, _)| *rank) {
            first.shed.cancel();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    fn count(&mut self, address: IpAddr, used: Use) {
        match used {
            Use::New => self.new += 1,
            Use::Waiting(_) => self.requests += 1,
            Use::Body(lag) if lag >= STALLED_LAG => self.stalled += 1,
            Use::Body(_) | Use::Handled => return,
        }
        *self.by_address.entry(address).or_default() += 1;
    }
}

/// Returns when a connection gives way, as an order; none if it doesn't. Clients with a trusted
/// certificate are last. Before them are bodies that come as they should, and first of all come
/// addresses with many connections that wait, of each address those that wait for a request, unused
/// ones first and then the longest idle, and after them stalled bodies, the one that is furthest
/// behind first.
///
/// A good client's new connection looks like one that is never used, and its idle one like that of
/// a stranger. So where nearly all are stalled bodies, these come first, and new connections come
/// last where nearly all are others.
fn rank(taken: &Taken, used: Use, waits: &Waits) -> Option<impl Ord + Copy + use<>> {
    let waiting = waits.new + waits.requests;
    let is_flood_of_bodies = waits.stalled > FLOOD_FACTOR * waiting;
    let is_flood_of_others = waits.requests + waits.stalled > FLOOD_FACTOR * waits.new;
    let (kind, response, lag) = match used {
        Use::New if is_flood_of_others => (3, 0, Duration::ZERO),
        Use::New => (1, 0, Duration::ZERO),
        Use::Waiting(response) => (1, response, Duration::ZERO),
        Use::Body(lag) if lag < STALLED_LAG => (4, 0, lag),
        Use::Body(lag) if is_flood_of_bodies => (0, 0, lag),
        Use::Body(lag) => (2, 0, lag),
        Use::Handled => return None,
    };
    let of_address = waits.by_address.get(&taken.address).copied();
    let many = of_address.filter(|number| *number > MANY);
    Some((
        taken.state.is_trusted(),
        kind == 4,
        Reverse(many),
        kind,
        response,
        Reverse(lag),
    ))
}

/// Returns an address as an IPv4 address if it is one, else the network of 64 bits around it, from
/// which one client may have any address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit
            .taken()
            .retain(|taken| !Arc::ptr_eq(&taken.state, &self.state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a connection to use.
    type Used = fn(&ConnectionState);

    /// Opens connections at these addresses, and has each used.
    async fn opened(
        limit: &Arc<ConnectionLimit>,
        connections: &[(&str, Used)],
    ) -> Vec<Option<Slot>> {
        let mut slots = Vec::new();
        for (address, used) in connections {
            let slot = limit.take(address.parse().expect("an address")).await;
            used(&slot.state);
            slots.push(Some(slot));
        }
        slots
    }

    fn unused(_: &ConnectionState) {}

    fn idle(state: &ConnectionState) {
        state.requested(false);
        state.responded(false);
        state.sent();
    }

    fn handled(state: &ConnectionState) {
        state.requested(false);
    }

    fn stalled(state: &ConnectionState) {
        state.requested(true);
        state.received_body(1);
    }

    fn large(state: &ConnectionState) {
        state.requested(true);
        state.received_body(1024 * 1024);
    }

    /// Sheds one connection, and returns which.
    fn shed(limit: &ConnectionLimit, slots: &mut [Option<Slot>]) -> Option<usize> {
        limit.shed_one();
        let is_shed = |slot: &Option<Slot>| {
            let slot = slot.as_ref();
            slot.is_some_and(|slot| slot.shed.is_cancelled())
        };
        let at = slots.iter().position(is_shed)?;
        slots[at] = None;
        Some(at)
    }

    /// Sheds connections until none gives way any more, and returns their order.
    fn order(limit: &ConnectionLimit, slots: &mut [Option<Slot>]) -> Vec<usize> {
        std::iter::from_fn(|| shed(limit, slots)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_connections_give_way_then_stalled_bodies_then_others() {
        let limit = Arc::new(ConnectionLimit::new(10));
        let one = "10.0.0.1";
        let mut slots = opened(
            &limit,
            &[
                (one, large),
                (one, stalled),
                (one, handled),
                (one, idle),
                (one, unused),
                (one, idle),
            ],
        )
        .await;
        tokio::time::advance(Duration::from_secs(1)).await;
        slots.extend(opened(&limit, &[(one, stalled)]).await);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(order(&limit, &mut slots), [4, 3, 5, 1, 6, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_bodies_gives_way_before_connections_that_wait() {
        let limit = Arc::new(ConnectionLimit::new(100));
        let one = "10.0.0.1";
        let mut connections = vec![(one, unused as Used), (one, large)];
        connections.extend([(one, stalled as Used); FLOOD_FACTOR + 1]);
        let mut slots = opened(&limit, &connections).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let order = order(&limit, &mut slots);
        // The first of them; without that there is no flood any more.
        assert_eq!(order[..2], [2, 0], "{order:?}");
        assert_eq!(order.last(), Some(&1), "{order:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn address_with_many_connections_gives_way_before_one_with_few() {
        let limit = Arc::new(ConnectionLimit::new(100));
        let idle: Used = idle;
        let mut connections = vec![("10.0.0.1", unused as _), ("::ffff:10.0.0.1", idle)];
        connections.extend([("2001:db8::1", idle), ("2001:db8::2", stalled as _)]);
        connections.extend([("2001:db8::3", idle); MANY]);
        let mut slots = opened(&limit, &connections).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(shed(&limit, &mut slots), Some(2), "a network's idle ones");
        assert_eq!(shed(&limit, &mut slots), Some(4));
        // Now they are no longer many.
        assert_eq!(shed(&limit, &mut slots), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn new_connection_gives_way_last_unless_many_are_new() {
        let limit = Arc::new(ConnectionLimit::new(100));
        let one = "10.0.0.1";
        let mut slots = opened(&limit, &[(one, idle as Used); FLOOD_FACTOR + 1]).await;
        slots.extend(opened(&limit, &[(one, unused as Used)]).await);
        assert_eq!(shed(&limit, &mut slots), Some(0));
        // Now it is no longer new.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(shed(&limit, &mut slots), Some(FLOOD_FACTOR + 1));
        slots.extend(opened(&limit, &[(one, unused as Used); 3]).await);
        let oldest = Some(FLOOD_FACTOR + 2);
        assert_eq!(shed(&limit, &mut slots), oldest, "there are many");
    }

    #[tokio::test(start_paused = true)]
    async fn trusted_client_gives_way_last() {
        let limit = Arc::new(ConnectionLimit::new(10));
        let mut slots = opened(
            &limit,
            &[
                ("10.0.0.1", unused),
                ("10.0.0.2", idle),
                ("10.0.0.2", large),
            ],
        )
        .await;
        slots[0].as_ref().expect("open").state.trust();
        assert_eq!(order(&limit, &mut slots), [1, 2, 0]);
    }
}
