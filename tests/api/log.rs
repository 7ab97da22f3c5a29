//! An event log without the rest of a manager.

use actix::prelude::*;
use faasnet::{http::Events, settings::EventSettings};
use faasnet_actors::{
    event_log::{EventLog, EventLogHandle, EventLogLimits, EventLogSettings, RingLimits, Teller, ToEventLog},
    support::{ChildExited, Children, LinkSource, Threads},
};
use std::{sync::Arc, time::Duration};

const LOG: &str = "event_log";

/// Supervises the log; gives it up when it ends.
struct Keeper {
    logs: Children<&'static str, EventLog>,
    // Where its links come from.
    _link: LinkSource<ToEventLog>,
}

impl Actor for Keeper {
    type Context = Context<Self>;
}

impl Handler<ChildExited<&'static str>> for Keeper {
    type Result = ();

    fn handle(&mut self, _: ChildExited<&'static str>, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// What a test holds of a running log.
#[derive(Clone)]
pub struct Log {
    _keeper: Addr<Keeper>,
    pub handle: EventLogHandle,
    pub teller: Teller,
}

impl Log {
    pub fn start(settings: &EventSettings) -> Self {
        let limits = EventLogLimits {
            ring: RingLimits { events_max: settings.kept_events_max, bytes_max: settings.kept_bytes_max },
            waiting_max: settings.waiting_max,
            counted_max: settings.counted_max,
            coalesce: Duration::from_millis(settings.coalesce_ms),
        };
        let link = LinkSource::new(LOG);
        let log = EventLogSettings::new(limits, 7, Arc::new(|| 1_700_000_000_000), Threads::new(0));
        let (handle, teller) = (log.handle(link.link("test")), log.teller(link.link("test")));
        let keeper = Keeper::create(|ctx| {
            let mut logs = Children::many("test", LOG);
            let parent = ctx.address().downgrade().recipient();
            logs.start(&LOG, parent, |life| EventLog::new(log, life).start());
            logs.link(&LOG, &link);
            Keeper { logs, _link: link }
        });
        Self { _keeper: keeper, handle, teller }
    }

    pub fn events(&self, settings: EventSettings) -> Events {
        Events::new(self.handle.clone(), self.teller.clone(), settings)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(log) = self.logs.remove(&LOG) {
            log.do_send(faasnet_actors::support::Stop);
        }
    }
}
