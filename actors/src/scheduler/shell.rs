//! The scheduler's actor: translates questions into events, performs effects.

use super::{
    core::{Answer, Effect, Event, Limits, SchedulerCore, Ticket, WriteId},
    messages::{Acquired, Ask, CallId, ControlError, Release, Reply, Request},
    records::Loaded,
};
use crate::{
    event_log::{Teller, WallClock},
    function_tree::{Event as TreeEvent, ToForest, ToTree},
    id::StartId,
    image::BlockImage,
    journal::{Done, JournalHandle},
    model::{FunctionView, PreheatView, VmView},
    profiles::{Hinted, ToProfiles},
    support::{Life, Link, Observe, Snapshot, Stop},
    vm_node::{Order, ToFleet, ToVm, VmMessage, VmNews},
    world::{Batch, ConversionProgress, Converter, Metadata, MetadataError, Source, Write},
};
use actix::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What the scheduler is made with, and made again.
#[derive(Clone)]
pub struct SchedulerSettings {
    pub limits: Limits,
    /// How often the scheduler looks at what is due.
    pub tick: Duration,
    /// Seed of the ids of starts.
    pub seed: [u8; 32],
    pub metadata: Arc<dyn Metadata>,
    pub journal: JournalHandle,
    pub converter: Arc<dyn Converter>,
    pub vms: Link<ToVm>,
    pub fleet: Link<ToFleet>,
    pub trees: Link<ToTree>,
    pub forest: Link<ToForest>,
    pub profiles: Link<ToProfiles>,
    pub teller: Teller,
    pub wall_clock: WallClock,
}

pub struct Scheduler {
    settings: SchedulerSettings,
    core: SchedulerCore,
    replies: BTreeMap<Ticket, Pending>,
    /// Requests that wait for a place, by the name under which their callers take them back.
    calls: BTreeMap<CallId, Ticket>,
    tickets: u64,
    life: Life<&'static str>,
}

/// An answer that somebody waits for. Bounded by the permits of requests and by the core's limits of
/// what may wait.
enum Pending {
    Done(Reply<()>),
    Function(Reply<FunctionView>),
    Started(Reply<Vec<StartId>>),
    Acquired(CallId, Reply<Acquired>),
    Vm(Reply<VmView>),
    Preheat(Reply<PreheatView>),
}

/// The journal's answer. Bounded by the journal's permits.
#[derive(Message)]
#[rtype(result = "()")]
struct Written {
    write: WriteId,
    result: Result<(), MetadataError>,
}

/// The converter's answer. Bounded by the number of functions.
#[derive(Message)]
#[rtype(result = "()")]
struct Converted {
    source: Source,
    result: Result<Box<BlockImage>, String>,
}

impl Scheduler {
    pub fn new(settings: SchedulerSettings, life: Life<&'static str>) -> Self {
        let mut seed = settings.seed;
        // A rebuilt scheduler must not make the ids again that the one before made.
        seed[0] ^= life.generation() as u8;
        let core = SchedulerCore::new(settings.limits, StdRng::from_seed(seed));
        Self { settings, core, replies: BTreeMap::new(), calls: BTreeMap::new(), tickets: 0, life }
    }

    fn happened(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        let unix_ms = (self.settings.wall_clock)();
        self.core.at(unix_ms).apply(event, Instant::now(), &mut effects);
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let tree = |tree, event| ToTree { tree, event, slot: None };
        match effect {
            Effect::Answer { ticket, answer } => {
                if let Some(pending) = self.replies.remove(&ticket) {
                    if let Pending::Acquired(call, _) = &pending {
                        self.calls.remove(call);
                    }
                    pending.answer(answer, ctx.address().recipient());
                }
            }
            Effect::Persist { write, writes } => self.persist(write, writes, ctx),
            Effect::Convert { source, progress } => self.convert(source, progress, ctx),
            Effect::Join { tree: id, vm, contact, start } => {
                self.settings.trees.send(tree(id, TreeEvent::Join { vm, contact, start }));
            }
            Effect::Preheat { tree: id, vm, contact, draft } => {
                self.settings.trees.send(tree(id, TreeEvent::Preheat { vm, contact, draft }));
            }
            Effect::Leave { tree: id, vm } => self.settings.trees.send(tree(id, TreeEvent::Leave { vm })),
            Effect::Dissolve { tree: id } => self.settings.trees.send(tree(id, TreeEvent::Dissolve)),
            Effect::Stop { vm, start } => {
                let message = VmMessage::Order(Order::Stop { start });
                self.settings.vms.send(ToVm { vm, message });
            }
            Effect::Recorded { tenant, recording } => {
                self.settings.profiles.send(ToProfiles::Recorded { tenant, recording });
            }
            Effect::GiveUp { vm, trees } => {
                let message = VmMessage::Order(Order::GiveUp { trees });
                self.settings.vms.send(ToVm { vm, message });
            }
            Effect::Forget { vm } => self.settings.fleet.send(ToFleet::Forget { vm }),
            Effect::Tell(news) => self.settings.teller.tell(news),
        }
    }

    fn persist(&self, write: WriteId, writes: Vec<Write>, ctx: &mut Context<Self>) {
        let written = ctx.address().recipient();
        let done = move |result| written.do_send(Written { write, result });
        self.settings.journal.submit(writes.into(), Done::new(done));
    }

    fn convert(&self, source: Source, progress: Arc<ConversionProgress>, ctx: &mut Context<Self>) {
        let conversion = self.settings.converter.convert(&source, None, progress);
        let converted = ctx.address().recipient();
        ctx.spawn(conversion.into_actor(self).map(move |result, _scheduler, _ctx| {
            let result = result.map(Box::new).map_err(|error| error.to_string());
            converted.do_send(Converted { source, result });
        }));
    }

    fn pend(&mut self, pending: Pending) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.replies.insert(ticket, pending);
        ticket
    }

    fn ask(&mut self, ask: Ask, ctx: &mut Context<Self>) {
        let event = match ask {
            Ask::PutFunction { tenant, name, spec, reply } => {
                let ticket = self.pend(Pending::Function(reply));
                Event::Put { ticket, key: (tenant, name), spec: Box::new(spec) }
            }
            Ask::DeleteFunction { tenant, name, reply } => {
                Event::Delete { ticket: self.pend(Pending::Done(reply)), key: (tenant, name) }
            }
            Ask::Start { tenant, name, count, reply } => {
                Event::Start { ticket: self.pend(Pending::Started(reply)), key: (tenant, name), count }
            }
            Ask::Stop { tenant, start, reply } => {
                Event::Stop { ticket: self.pend(Pending::Done(reply)), tenant, start }
            }
            // Its caller left while it was in the mailbox.
            Ask::Acquire { reply, .. } if reply.is_closed() => return,
            Ask::Acquire { call, tenant, name, on, deadline, reply } => {
                let ticket = self.pend(Pending::Acquired(call, reply));
                self.calls.insert(call, ticket);
                Event::Acquire { ticket, key: (tenant, name), on, deadline }
            }
            Ask::Abandon { call } => {
                let Some(ticket) = self.calls.remove(&call) else { return };
                self.replies.remove(&ticket);
                Event::Abandoned { ticket }
            }
            Ask::Preheat { tenant, name, spec, reply } => {
                Event::Preheat { ticket: self.pend(Pending::Preheat(reply)), key: (tenant, name), spec }
            }
            Ask::GetPreheat { tenant, name, reply } => {
                return answer(reply, self.core.preheat_view(&(tenant, name)));
            }
            Ask::RemoveVm { vm, reply } => Event::RemoveVm { ticket: self.pend(Pending::Done(reply)), vm },
            Ask::DrainVm { vm, force, reply } => {
                Event::Drain { ticket: self.pend(Pending::Vm(reply)), vm, force }
            }
            Ask::UndrainVm { vm, reply } => Event::Undrain { ticket: self.pend(Pending::Vm(reply)), vm },
            Ask::GetFunction { tenant, name, reply } => {
                let view = self.core.function_view(&(tenant, name));
                return answer(reply, view.ok_or(ControlError::NotFound("function")));
            }
            Ask::ListFunctions { tenant, reply } => {
                return answer(reply, Ok(self.core.function_views(&tenant)));
            }
            Ask::GetStart { tenant, start, reply } => {
                return answer(reply, self.core.start_view(&tenant, &start));
            }
            Ask::ListStarts { tenant, name, limit, reply } => {
                return answer(reply, self.core.start_views(&(tenant, name), limit));
            }
            Ask::Locate { tenant, start, reply } => return answer(reply, self.core.locate(&tenant, &start)),
            Ask::ListCode { reply } => return answer(reply, Ok(self.core.packages())),
            Ask::ListVms { reply } => return answer(reply, Ok(self.core.vm_views())),
            Ask::Count { reply } => return answer(reply, Ok(self.core.count())),
            Ask::GetProfile { tenant, name, reply } => {
                return match self.core.image_of(&tenant, &name) {
                    Ok((image, _)) => {
                        let (key, image) = ((tenant, image.source), image.id);
                        self.settings.profiles.send(ToProfiles::View { key, image, reply });
                    }
                    Err(error) => answer(reply, Err(error)),
                };
            }
            Ask::Optimize { tenant, name, reply } => {
                return match self.core.image_of(&tenant, &name) {
                    Ok((image, source)) => {
                        let (key, image) = ((tenant, image.source), image.id);
                        self.settings.profiles.send(ToProfiles::Optimize { key, image, source, reply });
                    }
                    Err(error) => answer(reply, Err(error)),
                };
            }
            Ask::GetTree { tenant, name, of_code, reply } => {
                let tree = match of_code {
                    true => self.core.code_tree_of(&tenant, &name),
                    false => self.core.tree_of(&tenant, &name),
                };
                return match tree {
                    Ok(tree) => self.settings.forest.send(ToForest::View { tree, reply }),
                    Err(error) => answer(reply, Err(error)),
                };
            }
        };
        self.happened(event, ctx);
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.happened(Event::Tick, ctx);
    }
}

/// Whoever asked may be gone; then nobody wants the answer.
fn answer<T>(reply: Reply<T>, answer: Result<T, ControlError>) {
    let _gone = reply.send(answer);
}

impl Pending {
    fn answer(self, result: Result<Answer, ControlError>, releases: Recipient<Release>) {
        match (self, result) {
            (Self::Done(reply), Ok(Answer::Done)) => answer(reply, Ok(())),
            (Self::Function(reply), Ok(Answer::Function(view))) => answer(reply, Ok(*view)),
            (Self::Started(reply), Ok(Answer::Started(starts))) => answer(reply, Ok(starts)),
            (Self::Vm(reply), Ok(Answer::Vm(view))) => answer(reply, Ok(*view)),
            (Self::Preheat(reply), Ok(Answer::Preheat(view))) => answer(reply, Ok(*view)),
            (Self::Preheat(reply), Err(error)) => answer(reply, Err(error)),
            // Not sent, the place is dropped, and thereby given back.
            (Self::Acquired(_, reply), Ok(Answer::Acquired(located))) => {
                answer(reply, Ok(Acquired::new(located, releases)));
            }
            (Self::Vm(reply), Err(error)) => answer(reply, Err(error)),
            (Self::Done(reply), Err(error)) => answer(reply, Err(error)),
            (Self::Function(reply), Err(error)) => answer(reply, Err(error)),
            (Self::Started(reply), Err(error)) => answer(reply, Err(error)),
            (Self::Acquired(_, reply), Err(error)) => answer(reply, Err(error)),
            (
                Self::Done(_)
                | Self::Function(_)
                | Self::Started(_)
                | Self::Acquired(..)
                | Self::Vm(_)
                | Self::Preheat(_),
                Ok(other),
            ) => {
                unreachable!("the core gave an answer to another question: {other:?}")
            }
        }
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let metadata = Arc::clone(&self.settings.metadata);
        let (journal, rebuilt) = (self.settings.journal.clone(), self.life.is_rebuilt());
        let load = async move {
            if rebuilt {
                // What the scheduler before this one handed in is in the store before it is read: a start
                // that was missed here would run after a later restart.
                journal.commit(Batch::default()).await?;
            }
            Loaded::read(metadata.as_ref()).await
        };
        ctx.wait(load.into_actor(self).map(|loaded, scheduler, ctx| match loaded {
            Ok(loaded) => {
                scheduler.happened(Event::Loaded(Box::new(loaded)), ctx);
                if scheduler.life.is_rebuilt() {
                    scheduler.settings.fleet.send(ToFleet::ReportAll);
                    scheduler.settings.profiles.send(ToProfiles::TellAll);
                }
            }
            Err(error) => {
                tracing::error!(%error, "load functions and starts");
                scheduler.life.give_up(ctx);
            }
        }));
        ctx.run_interval(self.settings.tick, Self::tick);
    }
}

impl Handler<Request> for Scheduler {
    type Result = ();

    fn handle(&mut self, Request { ask, permit, request }: Request, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        drop(permit);
        self.core.asked_by(request);
        self.ask(ask, ctx);
        self.core.asked_by(None);
    }
}

impl Handler<Release> for Scheduler {
    type Result = ();

    fn handle(&mut self, Release { start }: Release, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Released { start }, ctx);
    }
}

impl Handler<VmNews> for Scheduler {
    type Result = ();

    fn handle(&mut self, VmNews { vm, event, slot }: VmNews, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::News { vm, event }, ctx);
        drop(slot);
    }
}

impl Handler<Hinted> for Scheduler {
    type Result = ();

    fn handle(&mut self, hinted: Hinted, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Hinted(hinted), ctx);
    }
}

impl Handler<Written> for Scheduler {
    type Result = ();

    fn handle(&mut self, Written { write, result }: Written, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Written { write, result }, ctx);
    }
}

impl Handler<Converted> for Scheduler {
    type Result = ();

    fn handle(&mut self, Converted { source, result }: Converted, ctx: &mut Context<Self>) {
        self.life.took(ctx);
        self.happened(Event::Converted { source, result }, ctx);
    }
}

impl Handler<Observe> for Scheduler {
    type Result = Snapshot;

    fn handle(&mut self, _: Observe, _: &mut Context<Self>) -> Snapshot {
        self.core.observe(Snapshot::new(format!("{} answers are waited for", self.replies.len())))
    }
}

impl Handler<Stop> for Scheduler {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
