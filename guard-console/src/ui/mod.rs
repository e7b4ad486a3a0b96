//! Pages.

use crate::api::endpoint::Endpoints;

#[must_use]
pub fn endpoints() -> Endpoints {
    Endpoints::default()
}
