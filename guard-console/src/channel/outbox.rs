//! The outbox: messages that wait in the database until their channel has taken them.
//!
//! Owns when a message is made, tried again and given up. It is given changes of requests by their order in the
//! database, so that a stop at any point loses none. It must never send two messages of one request at once or out of
//! order, nor keep one channel waiting for another.

use std::time::Duration;

use futures::future::join_all;
use rand::Rng as _;
use ulid::Ulid;

use super::{Channel, Delivery, Event, One, Told};
use crate::app::{App, Result};
use crate::store::{self, ChannelRow, MessageRow};
use crate::time::Millis;

/// Seconds until the next attempt, by how many there were: about a day in all. Then it is given up.
const PAUSES: [u64; 10] = [2, 5, 15, 60, 300, 900, 3_600, 7_200, 18_000, 36_000];
/// A channel never asks for a longer pause than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);
/// Attempts of one channel at a time.
const AT_ONCE: u64 = 8;
/// For one attempt, whatever the channel's own limits are.
const PATIENCE: Duration = Duration::from_secs(30);
/// Without any news, everybody looks this often.
const IDLE: Duration = Duration::from_secs(30);
const AFTER_ERROR: Duration = Duration::from_secs(5);
const CHANGES_AT_ONCE: u64 = 50;
/// More of one channel do not wait: a workload decides how many there are.
const WAITING: u64 = 10_000;
const DEAD_LETTERS: u64 = 1_000;

/// Makes messages of what changed, for ever.
pub(super) async fn feed(app: &App) {
    let mut news = app.notify.watch_requests();
    loop {
        match feed_once(app).await {
            Ok(true) => continue,
            Ok(false) => {
                // Errors: the console stops.
                let _elapsed = tokio::time::timeout(IDLE, news.changed()).await;
            }
            Err(error) => {
                tracing::error!(%error, "channels cannot be told of requests; it is tried again");
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// Whether there may be more.
async fn feed_once(app: &App) -> Result<bool> {
    let mut more = false;
    let rows = app.store.channels().await?;
    for one in &app.channels.all {
        let Some(row) = rows.iter().find(|row| row.name == one.channel.name()) else {
            continue;
        };
        more |= feed_channel(app, one, row).await?;
    }
    Ok(more)
}

async fn feed_channel(app: &App, one: &One, row: &ChannelRow) -> Result<bool> {
    let changed = app.store.requests_changed_since(row.seq, CHANGES_AT_ONCE).await?;
    let Some(last) = changed.last().map(|request| request.seq) else {
        return Ok(false);
    };
    let more = changed.len() as u64 == CHANGES_AT_ONCE;
    let mut waiting = row.waiting;
    let mut messages = Vec::new();
    let mut versions = Vec::new();
    for request in changed {
        let before = app.store.told(&row.name, &request.id).await?;
        let told = app.told(request).await?;
        let events = events(row, &told, before.as_deref());
        if events.is_empty() {
            continue;
        }
        for event in events {
            if one.channel.wants(event, &told) {
                messages.push(message(app.now(), &*one.channel, event, &told, waiting)?);
                waiting += 1;
            }
        }
        versions.push((told.row.id.clone(), told.version()));
    }
    let mut change = app.store.change().await?;
    for message in &messages {
        store::add_message(&mut change, message).await?;
    }
    for (request, version) in &versions {
        store::set_told(&mut change, &row.name, request, version).await?;
    }
    if waiting > WAITING {
        store::forget_dead_letters(&mut change, DEAD_LETTERS).await?;
    }
    store::set_channel_seq(&mut change, &row.name, last).await?;
    change.commit().await?;
    if !messages.is_empty() {
        one.wake.notify_one();
    }
    Ok(more)
}

/// What is to be told of a request, after what was told before.
fn events(channel: &ChannelRow, told: &Told, before: Option<&str>) -> Vec<Event> {
    let pending = "pending";
    match before {
        None if told.ended() && told.row.arrived <= channel.arrived => Vec::new(),
        None if told.ended() => vec![Event::Asked, Event::Ended],
        None => vec![Event::Asked],
        Some(before) if before == told.version() => Vec::new(),
        Some(before) if before.starts_with(pending) && told.ended() => vec![Event::Ended],
        Some(_) => vec![Event::Changed],
    }
}

fn message(now: Millis, channel: &dyn Channel, event: Event, told: &Told, waiting: u64) -> Result<MessageRow> {
    let full = waiting >= WAITING;
    Ok(MessageRow {
        id: format!("msg_{}", Ulid::new()),
        channel: channel.name().to_owned(),
        request_id: told.row.id.clone(),
        event: event.as_str().to_owned(),
        body: channel.message(event, told, now)?,
        made_at: now,
        attempts: 0,
        due_at: now,
        dead_at: full.then_some(now),
        why: full.then(|| format!("{WAITING} messages were waiting already")),
    })
}

/// Sends the messages of one channel, for ever.
pub(super) async fn send(app: &App, one: &One) {
    loop {
        let pause = match send_once(app, &*one.channel).await {
            Ok(None) => continue,
            Ok(Some(pause)) => pause,
            Err(error) => {
                tracing::error!(%error, channel = one.channel.name(), "messages cannot be sent; it is tried again");
                AFTER_ERROR
            }
        };
        // Woken or not, the database says what is due.
        let _elapsed = tokio::time::timeout(pause, one.wake.notified()).await;
    }
}

/// How long nothing is due; none: perhaps there is more.
async fn send_once(app: &App, channel: &dyn Channel) -> Result<Option<Duration>> {
    let now = app.now();
    let due = app.store.due_messages(channel.name(), now, AT_ONCE).await?;
    if due.is_empty() {
        let next = app.store.next_message_at(channel.name()).await?;
        let wait = next.map_or(IDLE, |at| {
            Duration::from_millis(u64::try_from(at - now).unwrap_or(0).max(1))
        });
        return Ok(Some(wait.min(IDLE)));
    }
    let attempts = due.iter().map(|message| async move {
        let attempt = tokio::time::timeout(PATIENCE, channel.deliver(app, message));
        let delivery = attempt.await.unwrap_or_else(|_| Delivery::Later {
            why: format!("not delivered within {} s", PATIENCE.as_secs()),
            after: None,
        });
        settle(app, message, delivery).await
    });
    join_all(attempts).await.into_iter().collect::<Result<()>>()?;
    Ok(None)
}

async fn settle(app: &App, message: &MessageRow, delivery: Delivery) -> Result<()> {
    let now = app.now();
    let mut change = app.store.change().await?;
    let (why, due_at) = match delivery {
        Delivery::Done => {
            store::delivered(&mut change, message, now).await?;
            change.commit().await?;
            tracing::debug!(channel = message.channel, request = message.request_id, "delivered");
            return Ok(());
        }
        Delivery::Later { why, after } => {
            let pause = pause(message.attempts, after);
            (why, pause.map(|pause| now + pause))
        }
        Delivery::Never { why } => (why, None),
    };
    store::not_delivered(&mut change, message, &why, now, due_at).await?;
    if due_at.is_none() {
        store::forget_dead_letters(&mut change, DEAD_LETTERS).await?;
    }
    change.commit().await?;
    let (channel, request) = (&message.channel, &message.request_id);
    match due_at {
        Some(_) => tracing::warn!(channel, request, why, "not delivered; it is tried again"),
        None => tracing::error!(channel, request, why, "not delivered, and given up"),
    }
    Ok(())
}

/// Milliseconds until the next attempt after `attempts` before this one; none: it is given up.
fn pause(attempts: u32, asked: Option<Duration>) -> Option<Millis> {
    let seconds = PAUSES.get(usize::try_from(attempts).ok()?)?;
    let pause = Duration::from_secs(*seconds).max(asked.unwrap_or_default().min(LONGEST_PAUSE));
    // Messages that failed together do not come back together.
    let jitter = rand::thread_rng().gen_range(0.9..1.2);
    Millis::try_from(pause.mul_f64(jitter).as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_spread_over_a_day_and_end() {
        let mut whole = 0;
        for (attempt, seconds) in PAUSES.iter().enumerate() {
            let pause = pause(u32::try_from(attempt).unwrap(), None).unwrap();
            let exact = Millis::try_from(*seconds * 1_000).unwrap();
            assert!(
                (exact * 9 / 10..=exact * 12 / 10).contains(&pause),
                "{attempt}: {pause}"
            );
            whole += exact;
        }
        assert!((12..=30).contains(&(whole / 3_600_000)), "{whole}");
        assert_eq!(pause(10, None), None);
        // What the other side asks for counts, within reason.
        let asked = |seconds| pause(0, Some(Duration::from_secs(seconds))).unwrap();
        assert!((54_000..=72_000).contains(&asked(60)));
        assert!(asked(1_000_000) <= 3_600_000 * 12 / 10);
        assert!(asked(0) >= 1_800);
    }
}
