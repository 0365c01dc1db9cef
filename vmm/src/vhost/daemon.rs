//! A connected daemon, and what it was told in this connection: brought to what a driver wishes by telling it the
//! difference.
//!
//! In: a [`Wish`]. Out: messages, in the order that the protocol wants: queues back, features, memory, what is in
//! flight, queues, configuration. What must outlive the connection is in [`Kept`]. A daemon that refuses what a
//! driver set up leaves that driver in trouble; one that refuses what the daemon before it had taken is none of
//! this device.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::address::regions;
use super::agreement::{Queue, Session, Wish, is_same};
use super::frontend::{Frontend, FrontendError, InflightRegion, within};
use super::link::{Link, Lost};
use super::restore::{first_base, next_base};

/// Why a wish was not fulfilled.
pub enum Trouble {
    /// There is no use in the daemon any more.
    Lost(Lost),
    /// The driver has to begin anew.
    Driver(String),
}

impl From<FrontendError> for Trouble {
    /// As in a conversation that no daemon had before.
    fn from(error: FrontendError) -> Trouble {
        match error.is_refusal() {
            true => Trouble::Driver(format!("the daemon did not take what the driver set up: {error}")),
            false => Trouble::Lost(error.into()),
        }
    }
}

/// What outlives a connection.
#[derive(Default)]
pub struct Kept {
    /// The session that a daemon has agreed to.
    session: Option<Arc<Session>>,
    /// What is in flight, of the session it belongs to.
    inflight: Option<(Arc<Session>, InflightRegion)>,
    /// Queues that a daemon was told of, whether or not it got to serve them.
    begun: BTreeMap<u16, Arc<Queue>>,
}

/// A daemon, and what it was told.
pub struct Daemon {
    /// The connection.
    pub frontend: Frontend,
    /// The session.
    pub session: Option<Arc<Session>>,
    /// The queues that it has.
    pub queues: BTreeMap<u16, Arc<Queue>>,
    /// It has not found a ring of this session broken.
    pub content: bool,
    /// The daemon before it tracked what was in flight.
    tracked: bool,
}

impl Daemon {
    /// Has been greeted, and nothing more.
    pub fn new(frontend: Frontend) -> Daemon {
        Daemon { frontend, session: None, queues: BTreeMap::new(), content: true, tracked: false }
    }

    /// Brings it to the wish.
    pub fn agree(&mut self, link: &Link, kept: &mut Kept, wish: &Wish) -> Result<(), Trouble> {
        self.take_back(link, wish)?;
        if !is_same(&self.session, &wish.session) {
            let again = wish.session.is_some() && is_same(&kept.session, &wish.session);
            self.begin(link, kept, wish).map_err(|error| judge(error, again))?;
        }
        let again = self.start_queues(link, kept, wish)?;
        kept.session.clone_from(&wish.session);
        self.tell_writes(link, wish)?;
        for queue in again {
            queue.ring.kick.raise();
            queue.ring.call.raise();
        }
        Ok(())
    }

    /// Takes back the queues that are wished for no more.
    fn take_back(&mut self, link: &Link, wish: &Wish) -> Result<(), Trouble> {
        let wished = |index: &u16, queue: &Arc<Queue>| is_in(&wish.queues, *index, queue);
        let gone: Vec<_> = self.queues.iter().filter(|(i, q)| !wished(i, q)).map(|(i, _)| *i).collect();
        for index in gone {
            self.frontend.stop_ring(index, within(link.deadlines.drain))?;
            self.queues.remove(&index);
        }
        Ok(())
    }

    fn begin(&mut self, link: &Link, kept: &mut Kept, wish: &Wish) -> Result<(), FrontendError> {
        self.session.clone_from(&wish.session);
        kept.begun.retain(|index, queue| is_in(&wish.queues, *index, queue));
        // What was broken is gone.
        self.content = true;
        link.errors.take();
        let Some(session) = &wish.session else { return Ok(()) };
        let ram = &link.ram;
        self.frontend.begin(session.features, &regions(ram), ram.fd(), within(link.deadlines.run))?;
        self.track(link, kept, session)
    }

    /// Agrees on where the daemon writes down what is in flight.
    fn track(&mut self, link: &Link, kept: &mut Kept, session: &Arc<Session>) -> Result<(), FrontendError> {
        kept.inflight = kept.inflight.take().filter(|(of, _)| Arc::ptr_eq(of, session));
        self.tracked = kept.inflight.is_some() && self.frontend.has_inflight();
        if !self.tracked {
            let (queues, size) = (link.contract.queues, link.contract.queue_size);
            let region = self.frontend.get_inflight(queues, size, within(link.deadlines.run))?;
            kept.inflight = region.map(|region| (Arc::clone(session), region));
        }
        match &kept.inflight {
            Some((_, region)) => self.frontend.set_inflight(region, within(link.deadlines.run)),
            None => Ok(()),
        }
    }

    /// Starts the queues that the daemon has not; those of them that go on.
    fn start_queues(
        &mut self,
        link: &Link,
        kept: &mut Kept,
        wish: &Wish,
    ) -> Result<Vec<Arc<Queue>>, Trouble> {
        let Some(session) = &wish.session else { return Ok(Vec::new()) };
        let (mut again, had) = (Vec::new(), self.queues.len());
        for (index, queue) in &wish.queues {
            if is_in(&self.queues, *index, queue) {
                continue;
            }
            let begun = is_in(&kept.begun, *index, queue);
            let base =
                if begun { self.next_base(link, session, queue)? } else { first_base(session.features) };
            // From the first message on there may be something to take back.
            self.queues.insert(*index, Arc::clone(queue));
            kept.begun.insert(*index, Arc::clone(queue));
            let (error, deadline) = (link.errors.as_fd(), within(link.deadlines.run));
            let started = self.frontend.start_ring(&queue.ring, queue.at, base, error, deadline);
            started.map_err(|error| judge(error, begun))?;
            again.extend(begun.then(|| Arc::clone(queue)));
        }
        if self.queues.len() > had {
            self.frontend.fence(within(link.deadlines.run))?;
        }
        Ok(again)
    }

    fn next_base(&self, link: &Link, session: &Session, queue: &Queue) -> Result<u32, Trouble> {
        let base = next_base(&link.contract, session.features, &queue.ring.queue, &link.ram, self.tracked);
        let lost = || Trouble::Driver("nobody knows what its daemon was doing when it went".to_owned());
        base.ok_or_else(lost)
    }

    /// A write that the daemon refuses changes nothing.
    fn tell_writes(&mut self, link: &Link, wish: &Wish) -> Result<(), Trouble> {
        for write in &wish.writes {
            let told = self.frontend.set_config(write.offset, &write.data, within(link.deadlines.run));
            let taken = told.or_else(|error| if error.is_refusal() { Ok(false) } else { Err(error) })?;
            link.agreement.wrote(write, taken);
        }
        Ok(())
    }
}

/// Whose trouble an error is, in a conversation that another daemon had before (`again`) or nobody.
fn judge(error: FrontendError, again: bool) -> Trouble {
    match again && error.is_refusal() {
        true => Trouble::Lost(Lost::Another(error.to_string())),
        false => error.into(),
    }
}

fn is_in(queues: &BTreeMap<u16, Arc<Queue>>, index: u16, queue: &Arc<Queue>) -> bool {
    queues.get(&index).is_some_and(|other| Arc::ptr_eq(other, queue))
}
