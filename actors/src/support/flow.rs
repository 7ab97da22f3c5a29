//! Message flows: which actor sent what to whom, for whom it was, and which permit it held.
//!
//! Each hop is a tracing event of the target [`FLOW`] at level TRACE: nothing is made of it unless somebody
//! listens (`log.filter = "info,faasnet::flow=trace"`, or a test).

use std::fmt::Display;

/// Target of the events.
pub const FLOW: &str = "faasnet::flow";

/// A message as a flow shows it.
pub struct Hop<'a> {
    pub message: &'static str,
    /// The start, tree or VM that it is about.
    pub about: &'a dyn Display,
    /// What bounds how many of them may be under way.
    pub permit: &'static str,
}

/// A message whose way can be recorded.
pub trait Flow {
    /// None for what would only be noise in a flow.
    fn hop(&self) -> Option<Hop<'_>>;
}

/// Notes that `from` sends the message to `to`.
pub fn record(from: &'static str, to: &'static str, message: &impl Flow) {
    if tracing::enabled!(target: FLOW, tracing::Level::TRACE)
        && let Some(Hop { message, about, permit }) = message.hop()
    {
        tracing::trace!(target: FLOW, from, to, message, %about, permit);
    }
}

#[cfg(test)]
pub use recorder::{Recorded, record_flows};

#[cfg(test)]
mod recorder {
    use super::FLOW;
    use std::{
        fmt::Debug,
        sync::{Arc, Mutex},
    };
    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span,
        subscriber::DefaultGuard,
    };

    /// What was recorded so far, one line for each hop: `from -> to: message about [permit]`.
    #[derive(Clone, Default)]
    pub struct Recorded(Arc<Mutex<Vec<String>>>);

    impl Recorded {
        pub fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().expect("one thread"))
        }
    }

    /// Records the hops of this thread until the guard is dropped.
    pub fn record_flows() -> (Recorded, DefaultGuard) {
        let recorded = Recorded::default();
        let guard = tracing::subscriber::set_default(Recorder(recorded.clone()));
        (recorded, guard)
    }

    struct Recorder(Recorded);

    #[derive(Default)]
    struct Line {
        from: String,
        to: String,
        message: String,
        about: String,
        permit: String,
    }

    impl Line {
        fn set(&mut self, field: &Field, value: String) {
            match field.name() {
                "from" => self.from = value,
                "to" => self.to = value,
                "message" => self.message = value,
                "about" => self.about = value,
                "permit" => self.permit = value,
                other => unreachable!("a hop has no field {other}"),
            }
        }
    }

    impl Visit for Line {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.set(field, value.to_owned());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.set(field, format!("{value:?}"));
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == FLOW
        }

        fn event(&self, event: &Event<'_>) {
            let mut line = Line::default();
            event.record(&mut line);
            let Line { from, to, message, about, permit } = line;
            let text = format!("{from} -> {to}: {message} {about} [{permit}]");
            self.0.0.lock().expect("one thread").push(text);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }
}
