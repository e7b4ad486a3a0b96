//! Why something was not done, in words for whoever asked.

use crate::auth::password::PasswordError;
use crate::ca::CaError;
use crate::data_dir::DataDirError;
use crate::store::StoreError;

pub type Result<T> = std::result::Result<T, Error>;

/// Each kind is one problem type of the API; the text says what happened, why, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("sign in first")]
    SignInFirst,
    /// Wrong name or password, spent or wrong secret: never says which.
    #[error("{0}")]
    SignInFailed(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },
    #[error("{detail}")]
    Conflict { kind: &'static str, detail: String },
    /// What was to be changed is no longer what the caller saw.
    #[error("{0}")]
    Changed(String),
    #[error("this Idempotency-Key was used for another call; take a new one for each")]
    Reused,
    #[error("{0}")]
    Invalid(String),
    #[error("too many attempts; wait {seconds} s and try again")]
    TooMany { seconds: u64 },
    #[error("{0}")]
    Busy(String),
    /// The caller learns that it failed; the reason goes to the log.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn internal(why: impl Into<String>) -> Self {
        Self::Internal(why.into())
    }

    pub(crate) fn not_found(what: &'static str, name: &str) -> Self {
        // What was typed comes back in the message: bounded and visible.
        Self::NotFound {
            what,
            name: guard_evidence::text::visible_fold(name, 80),
        }
    }

    pub(crate) fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict {
            kind,
            detail: detail.into(),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<DataDirError> for Error {
    fn from(error: DataDirError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<CaError> for Error {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Request(_) => Self::Invalid(error.to_string()),
            _ => Self::Internal(error.to_string()),
        }
    }
}

impl From<PasswordError> for Error {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::Busy(error.to_string()),
            PasswordError::Hash(_) => Self::Internal(error.to_string()),
            _ => Self::Invalid(error.to_string()),
        }
    }
}
