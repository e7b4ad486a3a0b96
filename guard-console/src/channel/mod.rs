//! Channels: how people hear of requests outside the page, each in a module of its own.
//!
//! Owns what every channel is told, and when: a request is asked, changed, ended, with the card's words in the card's
//! order. It is given what the database has. It must never make the rest of the console wait, lose a message, or answer
//! for anybody: what people do in a channel comes back as an answer of theirs, judged as any other ([`crate::app`]).

mod guarded;
mod outbox;
mod webhook;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use guard_proto::rest::RequestState;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::app::answer::counted;
use crate::app::card::Card;
use crate::app::content::Content;
use crate::app::{App, Error, Result};
use crate::config::Config;
use crate::store::{AnswerRow, MessageRow, RequestRow};
use crate::time::Millis;

pub(crate) use guarded::check as check_url;

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Somebody is asked.
    Asked,
    /// An answer came that decides nothing yet or counts no more, or the host said what became of it.
    Changed,
    /// Approved, denied, timed out or withdrawn.
    Ended,
}

impl Event {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Changed => "changed",
            Self::Ended => "ended",
        }
    }
}

/// A request as channels are told of it.
#[derive(Debug)]
pub struct Told {
    pub row: RequestRow,
    /// Oldest first.
    pub answers: Vec<AnswerRow>,
    pub card: Card,
    /// The label's owner now.
    pub owner: Option<String>,
    pub content: Content,
    /// Its page.
    pub url: String,
}

impl Told {
    /// Approvals that count.
    #[must_use]
    pub fn approvals(&self) -> usize {
        counted(&self.answers, self.owner.as_deref())
            .filter(|answer| answer.verdict == "approve")
            .count()
    }

    /// Other words when something is to be told anew.
    fn version(&self) -> String {
        let void = self.answers.iter().filter(|answer| answer.void_because.is_some());
        format!(
            "{}-{}-{}-{}-{}",
            self.row.state.as_str(),
            self.answers.len(),
            void.count(),
            self.approvals(),
            self.row.outcome.as_deref().unwrap_or("none")
        )
    }

    fn ended(&self) -> bool {
        self.row.state != RequestState::Pending
    }
}

/// How an attempt to deliver ended.
#[derive(Debug)]
pub enum Delivery {
    Done,
    /// Try again; after a while that the other side has asked for, or else by the schedule.
    Later {
        why: String,
        after: Option<Duration>,
    },
    /// Trying again is of no use.
    Never {
        why: String,
    },
}

/// A way in which people hear of requests. One that takes answers, too, gives them to [`App`].
pub trait Channel: Debug + Send + Sync {
    /// Names it in the database and towards operators; stays the same over restarts.
    fn name(&self) -> &str;

    /// Whether it wants to hear of this. One that is refused is not heard of later.
    fn wants(&self, event: Event, told: &Told) -> bool;

    /// What is kept for delivery, and is the same at every attempt.
    ///
    /// # Errors
    /// If it cannot be made.
    fn message(&self, event: Event, told: &Told, at: Millis) -> Result<String>;

    /// One attempt. A message may come twice: the console may have stopped before it knew that the first one arrived.
    fn deliver<'a>(&'a self, app: &'a App, message: &'a MessageRow) -> BoxFuture<'a, Delivery>;

    /// What it does besides, as long as the console runs.
    fn listen(self: Arc<Self>, _: Arc<App>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One channel with its wake-up.
#[derive(Debug)]
struct One {
    channel: Arc<dyn Channel>,
    /// There may be a message to send.
    wake: Notify,
}

/// Every channel that is configured.
#[derive(Debug, Default)]
pub struct Channels {
    all: Vec<One>,
}

impl Channels {
    /// # Errors
    /// Whatever keeps one from being used, by its name.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let mut all: Vec<Arc<dyn Channel>> = Vec::new();
        for one in &config.webhooks {
            let opened = webhook::Webhook::open(one.clone());
            let failed = |why| Error::internal(format!("webhook {:?}: {why}", one.name));
            all.push(Arc::new(opened.map_err(failed)?));
        }
        let all = all.into_iter().map(|channel| One {
            channel,
            wake: Notify::new(),
        });
        Ok(Self { all: all.collect() })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|one| one.channel.name())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }
}

impl App {
    async fn told(&self, row: RequestRow) -> Result<Told> {
        let answers = self.store.answers(&row.id).await?;
        let owner = self.store.label_owner(&row.label).await?;
        let card = Card::read(&row.record)?;
        let earlier = self.store.before(&row).await?;
        Ok(Told {
            content: Content::of(&card, &row.host_name, owner.as_deref(), earlier),
            url: format!("{}/requests/{}", self.config.web_url(), row.id),
            row,
            answers,
            card,
            owner,
        })
    }
}

/// Fills the outbox and empties it, until the console stops.
pub async fn run(app: Arc<App>) {
    if app.channels.all.is_empty() {
        return;
    }
    let feeder = outbox::feed(&app);
    let senders = app.channels.all.iter().map(|one| outbox::send(&app, one));
    let listeners = app
        .channels
        .all
        .iter()
        .map(|one| one.channel.clone().listen(app.clone()));
    let work = async {
        futures::join!(
            feeder,
            futures::future::join_all(senders),
            futures::future::join_all(listeners)
        );
    };
    tokio::select! {
        () = work => {}
        () = app.stopping.cancelled() => {}
    }
}
