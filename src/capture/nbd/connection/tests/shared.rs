//! Connections that share a budget.

use super::*;
use crate::capture::nbd::budget::OWN_BYTES;

const MIB: usize = 1 << 20;
const TOTAL_BYTES: usize = 4 * MIB;

fn two() -> (Arc<Budget>, [Connection; 2]) {
    let budget = Arc::new(Budget::new(TOTAL_BYTES, 0));
    let connections = [(); 2].map(|()| sharing(Limits::default(), &budget));
    assert_eq!(budget.held(), 0);
    (budget, connections)
}

fn advanced(connection: &mut Connection) -> usize {
    let mut requests = Vec::new();
    connection.advance(&Site, &mut requests);
    requests.len()
}

#[test]
fn what_one_leaves_unread_keeps_the_others_large_requests_waiting_and_no_small_ones() {
    let (budget, [mut first, mut second]) = two();
    let requests = receive(&mut first, &read(1, 4 << 20));
    assert_eq!((requests.len(), budget.held()), (1, 4 * MIB - OWN_BYTES));
    let data = DataPiece::Bytes(Buffer::zeroed(4 * MIB).freeze());
    first.complete(requests[0].0, Ok(Response::Data(vec![data])));
    assert_eq!(first.requests_in_flight(), 0, "answered, and not taken");
    let large = receive(&mut second, &[read(1, 64 << 10), read(2, 64 << 10), read(3, 1 << 20)].concat());
    assert_eq!((large.len(), second.wants_input()), (2, false), "two are small together");
    assert_eq!(second.missing_bytes(), MIB);
    assert_eq!(advanced(&mut second), 0);
    // As its replies leave, what they took is there for others.
    first.advance_output(2 * MIB);
    assert!((2 * MIB - OWN_BYTES..2 * MIB).contains(&budget.held()));
    assert_eq!((advanced(&mut second), second.missing_bytes(), second.wants_input()), (1, 0, true));
    sent(&mut first);
    assert_eq!((first.shared_bytes(), budget.held()), (0, second.shared_bytes()));
}

#[test]
fn a_payload_on_its_way_counts_and_goes_with_its_connection() {
    let (budget, [mut first, mut second]) = two();
    assert!(receive(&mut first, &writes(1, 4 * MIB)[..100]).is_empty());
    assert_eq!(budget.held(), 4 * MIB - OWN_BYTES);
    assert!(receive(&mut second, &writes(1, MIB)[..100]).is_empty());
    assert!(second.missing_bytes() > 0 && !second.awaits_payload());
    drop(first);
    assert_eq!(budget.held(), 0);
    assert_eq!(advanced(&mut second), 0);
    assert!(second.awaits_payload());
    assert_eq!(receive(&mut second, &writes(1, MIB)[100..]).len(), 1);
}

#[test]
fn what_is_refused_needs_no_room() {
    let (budget, [mut first, mut second]) = two();
    assert_eq!(receive(&mut first, &read(1, 4 << 20)).len(), 1);
    assert!(receive(&mut second, &read(1, 1 << 20)).is_empty());
    assert!(second.missing_bytes() > 0);
    second.begin_shutdown();
    assert_eq!(advanced(&mut second), 0);
    assert_eq!((second.missing_bytes(), sent(&mut second).len()), (0, 16));
    assert_eq!(budget.held(), first.shared_bytes());
}

#[test]
fn a_connection_that_is_given_up_holds_what_is_in_flight_until_it_is_answered() {
    let (budget, [mut first, _]) = two();
    let mut requests = receive(&mut first, &[read(1, 1 << 20), read(2, 1 << 20)].concat());
    receive(&mut first, &writes(1, MIB)[..100]);
    let data = || Ok(Response::Data(vec![DataPiece::Bytes(Buffer::zeroed(MIB).freeze())]));
    first.complete(requests.remove(0).0, data());
    assert!(first.held_bytes() > 3 * MIB);
    first.abandon();
    assert_eq!((first.held_bytes(), budget.held()), (MIB, MIB - OWN_BYTES));
    first.complete(requests.remove(0).0, data());
    first.abandon();
    assert_eq!((first.held_bytes(), budget.held(), first.state()), (0, 0, State::Closed));
}
