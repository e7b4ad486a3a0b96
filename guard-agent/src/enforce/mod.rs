//! The one way to a verdict.
//!
//! Owns sending [`ToKernel::Release`], and the answers that the kernel side ([`Remembered`]) and the kernel ([`Exact`]) may give again by themselves:
//! nothing else in the agent does. It is given an action and the authority for its verdict. It must never allow without a place for the record of it, or on people's word before their decision is on
//! disk; both are shown by the types.

mod exact;
mod remembered;

use std::sync::Arc;

use guard_evidence::chain::Sealed;

use crate::evidence::Slot;
use crate::kernel::KernelHandle;
use crate::kernel::api::{ActionId, ExecExpectation, Release, ToKernel};

pub use exact::Exact;
pub use remembered::{Known, Pass, Remembered};

/// What holds an answer to the action that it was given for.
#[derive(Debug, Clone)]
pub enum Bound {
    /// The kernel's key says all of it: the hook uses the verdict for nothing else.
    Key,
    /// An exec: what runs is compared with this.
    Compared(Arc<ExecExpectation>),
}

impl Bound {
    fn allow(self) -> Release {
        match self {
            Self::Key => Release::Allow,
            Self::Compared(expectation) => Release::AllowChecked(expectation),
        }
    }
}

/// Sole sender of verdicts.
#[derive(Debug)]
pub struct Enforcer {
    kernel: KernelHandle,
}

impl Enforcer {
    #[must_use]
    pub fn new(kernel: KernelHandle) -> Self {
        Self { kernel }
    }

    /// The policy allows by the kernel key alone; the record of it has its place.
    pub fn allow_by_key(&self, id: ActionId, _record: &Slot) {
        self.release(id, Release::Allow);
    }

    /// The policy allows what is known of the held thread; the record of it has its place.
    pub fn allow_by_policy(&self, id: ActionId, bound: Bound, _record: &Slot) {
        self.release(id, bound.allow());
    }

    /// People allow; their decision is on disk.
    pub fn allow_by_people(&self, id: ActionId, bound: Bound, _decision: &Sealed) {
        self.release(id, bound.allow());
    }

    /// A denial needs no authority.
    pub fn deny(&self, id: ActionId) {
        self.release(id, Release::Deny);
    }

    fn release(&self, id: ActionId, release: Release) {
        self.kernel.send(ToKernel::Release { id, release });
    }
}
