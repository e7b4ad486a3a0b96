//! What `guard status` is told.
//!
//! Owns the numbers that it is made of. It is given the agent's counts and the kernel's tables. It must never read those
//! tables as often as somebody asks: anybody on the host may.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guard_common::protect::kind;
use guard_proto::control::{AgentStatus, KernelSide, LabelSide, RefusedTheft};

use super::Context;
use crate::kernel::{self, LabelNumbers, Usage};
use crate::labels::Labels;
use crate::protect;

/// Numbers younger than this are good for the next who asks.
const FRESH: Duration = Duration::from_millis(250);

/// The last numbers, and the one reader at a time.
#[derive(Debug, Default)]
pub struct Recent(tokio::sync::Mutex<Option<(Instant, KernelSide)>>);

pub(super) async fn status(context: &Context) -> AgentStatus {
    let policy = context.policy.current();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host_id: context.console.is_some().then(|| context.host_id.clone()),
        console: context.console.as_ref().map(|(address, _)| address.clone()),
        console_state: match &context.console {
            None => "not enrolled",
            Some((_, state)) if state.is_connected() => "connected",
            Some(_) => "connecting",
        }
        .to_owned(),
        kernel: context.kernel_release.clone(),
        enforcing: true,
        enforcing_since: context.enforcing_since.clone(),
        policy_digest: policy.digest.clone(),
        policies: policy.count,
        held: count(&context.stats.held),
        asked: count(&context.stats.asked),
        allowed: count(&context.stats.allowed),
        denied: count(&context.stats.denied),
        lost_events: count(&context.stats.lost_events),
        unshipped_records: context.evidence.unshipped(),
        log_size: context.console.as_ref().map_or(0, |(_, state)| state.log_size()),
        log_refused: context.console.as_ref().and_then(|(_, state)| state.log_refused()),
        kernel_side: kernel_side(context).await,
    }
}

async fn kernel_side(context: &Context) -> Option<KernelSide> {
    let mut recent = context.recent.0.lock().await;
    if let Some((at, numbers)) = &*recent
        && at.elapsed() < FRESH
    {
        return Some(numbers.clone());
    }
    let pins = context.pin_directory.clone();
    let usage = match tokio::task::spawn_blocking(move || kernel::usage(&pins)).await {
        Ok(Ok(usage)) => usage,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the kernel side's tables cannot be read");
            return None;
        }
        Err(_) => return None,
    };
    let by_agent = context.stats.refused_held.lock().clone();
    let numbers = in_words(&usage, &context.labels, |label| {
        by_agent.get(&label).copied().unwrap_or(0)
    });
    *recent = Some((Instant::now(), numbers.clone()));
    Some(numbers)
}

fn in_words(usage: &Usage, labels: &Labels, refused_by_agent: impl Fn(kernel::api::LabelId) -> u64) -> KernelSide {
    KernelSide {
        labels: usage
            .labels
            .iter()
            .map(|numbers| label(numbers, labels, refused_by_agent(numbers.label)))
            .collect(),
        refused_pending_full: usage.pending_full,
        refused_tasks_full: usage.tasks_full,
        cgroups_full: usage.cgroups_full,
        refused_sockets_full: usage.flows_full,
        ring_full: usage.ring_full,
        refused_signal: usage.signal_failed,
        refused_unchecked: usage.unchecked,
        allowed_while_away: usage.away_allowed,
    }
}

fn label(numbers: &LabelNumbers, labels: &Labels, refused_by_agent: u64) -> LabelSide {
    let limits = labels.settings(numbers.label);
    let leaving = numbers.refused.get(&kind::CGROUP).copied().unwrap_or(0);
    LabelSide {
        label: labels
            .name(numbers.label)
            .unwrap_or_else(|| format!("label {}", numbers.label.0)),
        held: numbers.held,
        held_limit: limits.pending.into(),
        looping: numbers.looping,
        looping_limit: limits.looping.into(),
        parked: numbers.parked,
        tasks: numbers.tasks,
        tasks_limit: limits.tasks.into(),
        refused_held: numbers.refused_pending + refused_by_agent,
        refused_tasks: numbers.refused_tasks,
        sockets: numbers.sockets,
        sockets_limit: limits.sockets.into(),
        refused_sockets: numbers.refused_sockets,
        refused_leaving: leaving,
        allowed: limits.allow.names().into_iter().map(str::to_owned).collect(),
        refused_theft: numbers
            .refused
            .iter()
            .filter(|(what, _)| **what != kind::CGROUP)
            .map(|(what, count)| RefusedTheft {
                object: protect::object(*what).to_owned(),
                count: *count,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LabelRules;
    use crate::kernel::KernelHandle;
    use crate::kernel::api::LabelId;
    use crate::labels::Source;
    use crate::testing::rig;

    #[tokio::test]
    async fn numbers_get_the_names_and_limits_of_their_labels() {
        let rig = rig();
        std::fs::create_dir(rig.cgroups.join("box")).unwrap();
        let (kernel, _sent) = KernelHandle::pair_for_tests();
        let rules = LabelRules::default();
        let labels = Labels::at(&rig.cgroups, &rig.state, rules, "/agent", kernel, rig.evidence.clone()).unwrap();
        let _in_force = labels.add("coder", "/box", Source::Command).unwrap();
        let mut one = LabelNumbers {
            label: LabelId(1),
            pending: 5,
            tasks: 7,
            refused_pending: 2,
            refused_tasks: 1,
            sockets: 3,
            refused_sockets: 8,
            held: 4,
            looping: 1,
            parked: 2,
            refused: [(kind::SIGN_IN, 3), (kind::CGROUP, 6)].into(),
        };
        let side = label(&one, &labels, 10);
        assert_eq!(
            (side.label.as_str(), side.held, side.looping, side.parked),
            ("coder", 4, 1, 2)
        );
        assert_eq!((side.held_limit, side.tasks, side.tasks_limit), (1_000, 7, 16_384));
        assert_eq!(
            (side.refused_held, side.refused_tasks, side.refused_leaving),
            (12, 1, 6)
        );
        assert_eq!((side.sockets, side.sockets_limit, side.refused_sockets), (3, 4_096, 8));
        let theft = RefusedTheft {
            object: "sign-in".to_owned(),
            count: 3,
        };
        assert_eq!(side.refused_theft, [theft]);
        // A label of a state directory that is gone still counts.
        one.label = LabelId(9);
        assert_eq!(label(&one, &labels, 0).label, "label 9");
    }
}
