//! The actor around the core: translates, performs effects.

use super::{
    core::{Effect, Event, Handle, ProfileKey, ProfileLimits, ProfilesCore, Ticket},
    messages::{Hinted, ToProfiles},
    records,
};
use crate::{
    id::ImageId,
    image::BlockImage,
    journal::{Done, JournalHandle},
    model::ProfileView,
    profile::Profile,
    scheduler::Reply,
    support::{Life, Link, Observe, Snapshot, Stop},
    wire::holder::PlainRange,
    world::{Batch, Converter, Metadata, MetadataError, Packing, Source, Surveyor, Write},
};
use actix::prelude::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often it is looked for attempts that are due: their pauses are many times as long.
const TICK: Duration = Duration::from_millis(500);

/// What the keeper of profiles is made with, and made again.
#[derive(Clone)]
pub struct ProfilesSettings {
    pub limits: ProfileLimits,
    pub metadata: Arc<dyn Metadata>,
    pub journal: JournalHandle,
    pub converter: Arc<dyn Converter>,
    pub surveyor: Arc<dyn Surveyor>,
    pub scheduler: Link<Hinted>,
}

/// Keeps what starts read, and has images packed by it.
pub struct Profiles {
    settings: ProfilesSettings,
    core: ProfilesCore,
    /// Questions that wait for the disk. Bounded by the permits of requests to the scheduler.
    replies: BTreeMap<Ticket, Reply<ProfileView>>,
    tickets: u64,
    life: Life<&'static str>,
}

/// The answer to one of the core's effects. Bounded by the profiles, each of which has few under way.
#[derive(Message)]
#[rtype(result = "()")]
struct Happened(Event);

impl Profiles {
    pub fn new(settings: ProfilesSettings, life: Life<&'static str>) -> Self {
        let core = ProfilesCore::new(settings.limits);
        Self { settings, core, replies: BTreeMap::new(), tickets: 0, life }
    }

    fn happened(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        self.core.apply(event, Instant::now(), &mut effects);
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::TakeIn { key, image, before, ranges } => self.take_in(key, image, before, ranges, ctx),
            Effect::Pack { key, source, packing, progress } => self.pack(key, source, packing, progress, ctx),
            Effect::Place { key, image, profile } => self.place(key, image, profile, ctx),
            Effect::Persist { key, version, writes } => self.persist(key, version, writes, ctx),
            Effect::Tell { key, hint } => self.settings.scheduler.send(Hinted { key, hint }),
            Effect::Answer { ticket, answer } => {
                if let Some(reply) = self.replies.remove(&ticket) {
                    // Whoever asked may be gone; then nobody wants the answer.
                    let _gone = reply.send(answer.map(|view| *view));
                }
            }
        }
    }

    fn take_in(
        &self,
        key: ProfileKey,
        image: Arc<BlockImage>,
        before: Arc<Profile>,
        ranges: Arc<[PlainRange]>,
        ctx: &mut Context<Self>,
    ) {
        let id: ImageId = image.id;
        let work = self.settings.surveyor.take_in(image, before, ranges);
        ctx.spawn(work.into_actor(self).map(move |result, profiles, ctx| {
            if let Err(error) = &result {
                tracing::warn!(tenant = %key.0, image = %id, error, "a recording was not taken in");
            }
            let result = result.map(Box::new);
            profiles.happened(Event::TakenIn { key, image: id, result }, ctx);
        }));
    }

    fn pack(
        &self,
        key: ProfileKey,
        source: String,
        packing: Packing,
        Handle(progress): Handle,
        ctx: &mut Context<Self>,
    ) {
        tracing::info!(tenant = %key.0, source, digest = %key.1, "an image is packed for its starts");
        let work = self.settings.converter.convert(&Source::Image(source.clone()), Some(packing), progress);
        ctx.spawn(work.into_actor(self).map(move |result, profiles, ctx| {
            if let Err(error) = &result {
                tracing::warn!(tenant = %key.0, source, %error, "an image was not packed");
            }
            let result = result.map(Box::new).map_err(|error| error.to_string());
            profiles.happened(Event::Packed { key, result }, ctx);
        }));
    }

    fn place(&self, key: ProfileKey, image: Arc<BlockImage>, profile: Arc<Profile>, ctx: &mut Context<Self>) {
        let id = image.id;
        let work = self.settings.surveyor.place(image, profile);
        ctx.spawn(work.into_actor(self).map(move |result, profiles, ctx| {
            if let Err(error) = &result {
                tracing::warn!(tenant = %key.0, image = %id, error, "a packed image cannot be read");
            }
            profiles.happened(Event::Placed { key, result }, ctx);
        }));
    }

    fn persist(&self, key: ProfileKey, version: u64, writes: Vec<Write>, ctx: &mut Context<Self>) {
        let written = ctx.address().recipient();
        let done = move |result: Result<(), MetadataError>| {
            if let Err(error) = &result {
                tracing::warn!(tenant = %key.0, source = %key.1, %error, "a profile was not kept");
            }
            written.do_send(Happened(Event::Written { key, version, result }));
        };
        self.settings.journal.submit(writes.into(), Done::new(done));
    }

    fn pend(&mut self, reply: Reply<ProfileView>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.replies.insert(ticket, reply);
        ticket
    }
}

impl Actor for Profiles {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let (metadata, journal) = (Arc::clone(&self.settings.metadata), self.settings.journal.clone());
        let is_rebuilt = self.life.is_rebuilt();
        let load = async move {
            if is_rebuilt {
                // What the one before this has handed in is in the store before it is read.
                journal.commit(Batch::default()).await?;
            }
            records::read(metadata.as_ref()).await
        };
        ctx.wait(load.into_actor(self).map(|loaded, profiles, ctx| match loaded {
            Ok(rows) => profiles.happened(Event::Loaded(rows), ctx),
            Err(error) => {
                tracing::error!(%error, "load profiles");
                profiles.life.give_up(ctx);
            }
        }));
        ctx.run_interval(TICK, |profiles, ctx| {
            if !profiles.life.parent_is_up() {
                return ctx.stop();
            }
            profiles.happened(Event::Tick, ctx);
        });
    }
}

impl Handler<ToProfiles> for Profiles {
    type Result = ();

    fn handle(&mut self, message: ToProfiles, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        let event = match message {
            ToProfiles::Recorded { tenant, recording } => Event::Recorded { tenant, recording },
            ToProfiles::View { key, image, reply } => Event::View { ticket: self.pend(reply), key, image },
            ToProfiles::Optimize { key, image, source, reply } => {
                Event::Optimize { ticket: self.pend(reply), key, image, source }
            }
            ToProfiles::TellAll => Event::TellAll,
        };
        self.happened(event, ctx);
    }
}

impl Handler<Happened> for Profiles {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(event, ctx);
    }
}

impl Handler<Observe> for Profiles {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.core.observe()
    }
}

impl Handler<Stop> for Profiles {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
