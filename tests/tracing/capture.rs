//! A subscriber that keeps everything, of every level, of the whole process; and what it was told.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use tower_distributed_lock::LockKey;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::eventually;

/// An event or a span, with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Record {
    pub level: Level,
    target: String,
    pub fields: Fields,
    /// Outermost first.
    pub spans: Vec<(&'static str, Fields)>,
}

#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        fields.find_map(|(field, value)| (*field == name).then_some(value.as_str()))
    }

    pub fn number(&self, name: &str) -> f64 {
        self.get(name).unwrap().parse().unwrap()
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl Record {
    pub fn message(&self) -> &str {
        self.fields.get("message").unwrap_or_default()
    }

    pub fn key(&self) -> Option<&str> {
        self.fields.get("key")
    }

    pub fn is_ours(&self) -> bool {
        self.target == "tower_distributed_lock"
    }

    /// The span of the lock, if it is in one.
    pub fn lock_span(&self) -> Option<&Fields> {
        let mut spans = self.spans.iter();
        spans.find_map(|(name, fields)| (*name == "lock").then_some(fields))
    }
}

/// Keeps everything, of every level, of the whole process.
struct Capture(Arc<Mutex<Vec<Record>>>);

impl<S> Layer<S> for Capture
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let span = context.span(id).unwrap();
        span.extensions_mut().insert(fields.clone());
        self.0.lock().unwrap().push(Record {
            level: *span.metadata().level(),
            target: span.metadata().target().to_owned(),
            fields,
            spans: Vec::new(),
        });
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        panic_once(&fields);
        let spans = context
            .event_scope(event)
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root);
        let spans = spans
            .map(|span| {
                (
                    span.name(),
                    span.extensions().get::<Fields>().unwrap().clone(),
                )
            })
            .collect();
        self.0.lock().unwrap().push(Record {
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            fields,
            spans,
        });
    }
}

/// Texts at which the subscriber panics when an event has them, once for each.
pub static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn panic_once(fields: &Fields) {
    let told = fields.get("why").unwrap_or_default();
    let mut panics = PANICS.lock().unwrap();
    let Some(place) = panics.iter().position(|text| told.contains(text)) else {
        return;
    };
    panics.swap_remove(place);
    drop(panics);
    panic!("a subscriber that panics");
}

/// Returns everything that was told so far. All tests share it; each has keys of its own.
pub fn records() -> Vec<Record> {
    static RECORDS: OnceLock<Arc<Mutex<Vec<Record>>>> = OnceLock::new();
    let records = RECORDS.get_or_init(|| {
        let records = Arc::<Mutex<Vec<Record>>>::default();
        let subscriber = tracing_subscriber::registry().with(Capture(Arc::clone(&records)));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        records
    });
    records.lock().unwrap().clone()
}

/// Has what this thread tells, and the threads of the managers that are made on it, kept apart, as
/// long as the guard lives.
///
/// The subscriber of the process must be there first. A single one of a thread would miss events:
/// what another thread has found out without it, namely that no subscriber wants them, holds for
/// all.
pub fn of_this_thread() -> (Arc<Mutex<Vec<Record>>>, DefaultGuard) {
    listen();
    let records = Arc::<Mutex<Vec<Record>>>::default();
    let subscriber = tracing_subscriber::registry().with(Capture(Arc::clone(&records)));
    (records, tracing::subscriber::set_default(subscriber))
}

/// Begins to listen.
pub fn listen() {
    records();
}

pub fn fingerprint(key: &str) -> String {
    LockKey::new(key).unwrap().fingerprint()
}

/// Returns the events on a key with this message.
pub fn told(key: &str, message: &str) -> Vec<Record> {
    let key = fingerprint(key);
    let mut records = records();
    records.retain(|record| record.key() == Some(&key) && record.message() == message);
    records
}

pub async fn one(key: &str, message: &str) -> Record {
    eventually(message, || async { !told(key, message).is_empty() }).await;
    let mut records = told(key, message);
    assert_eq!(records.len(), 1, "{records:#?}");
    records.remove(0)
}

/// Checks that none of these is in anything that was told, on any level.
pub fn assert_untold(secrets: &[&str]) {
    let mut text = String::new();
    for record in records() {
        writeln!(text, "{record:?}").unwrap();
    }
    for secret in secrets {
        for line in text.lines() {
            assert!(!line.contains(secret), "{secret} is told: {line}");
        }
    }
}
