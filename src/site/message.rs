//! What comes to a data thread through its intake.

use std::time::Duration;

use tokio::sync::oneshot;

use super::host::Host;
use super::listener::Listener;
use super::session::Session;
use crate::block::{Export, Reply, Request, Ticket};
use crate::units::GroupId;

pub(super) type Command<V> = Box<dyn FnOnce(&mut Host<V>) + Send>;

pub(super) enum Message<V> {
    /// Accept clients here.
    Listen(Listener),
    /// A session that another thread accepted, and what it has asked already.
    Attach { session: Box<Session>, requests: Vec<(Ticket, Export, Request)> },
    /// Requests of sessions that live on thread `from`, for volumes that live here.
    Submit { from: usize, requests: Vec<(Ticket, Export, Request)> },
    /// Replies of volumes that live elsewhere, for sessions that live here.
    Replies(Vec<(Ticket, Reply)>),
    /// A session elsewhere that used a volume here has ended.
    SessionEnded { group: GroupId, session: u64 },
    /// Tell how many bytes the sessions hold: of requests in flight, and of replies that wait for the socket.
    Measure(oneshot::Sender<usize>),
    /// There may be room now for sessions here that wait for some.
    Room,
    /// Sessions somewhere wait for room: look for clients that hold it and do nothing.
    Shortage,
    /// Something to do on the host.
    Command(Command<V>),
    /// Close sessions, of one export or all and for good; tell how many had to be cut off.
    Drain { export: Option<Export>, within: Duration, drained: oneshot::Sender<usize> },
    /// Do what was accepted before this, and end.
    Stop,
}
