//! `tracing`'s events as lines. There are no spans: what a line is about stands in its fields.

use std::fmt::Debug;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::line::Line;

/// Writes each event that the level lets through.
pub(super) struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= super::level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(super::level().into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new(*event.metadata().level());
        event.record(&mut Fields(&mut line));
        super::write(&line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Takes an event's fields into a line.
struct Fields<'a>(&'a mut Line);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.0.say(format_args!("{value:?}")),
            name => self.0.field(name, format_args!("{value:?}"), false),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.field(field.name(), value, false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.field(field.name(), value, true);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.field(field.name(), value, true);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.field(field.name(), value, true);
    }
}
