//! The table of HTTP endpoints: every route says who may call it, so that a test can try them all.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use guard_proto::rest::Role;

use super::identity::Shared;
use crate::app::Permission;

/// Who may call an endpoint. The application enforces it; this is what it is tested against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Without signing in.
    Anyone,
    /// Whoever is signed in.
    SignedIn,
    Needs(Permission),
}

impl Access {
    #[must_use]
    pub fn allows(self, role: Role) -> bool {
        match self {
            Self::Anyone | Self::SignedIn => true,
            Self::Needs(permission) => permission.roles().contains(&role),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
}

/// A router that remembers what it serves.
#[derive(Debug, Default)]
pub struct Endpoints {
    pub router: Router<Shared>,
    pub table: Vec<Endpoint>,
}

impl Endpoints {
    #[must_use]
    pub fn get<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add("GET", MethodFilter::GET, path, access, handler)
    }

    #[must_use]
    pub fn post<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add("POST", MethodFilter::POST, path, access, handler)
    }

    #[must_use]
    pub fn put<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add("PUT", MethodFilter::PUT, path, access, handler)
    }

    #[must_use]
    pub fn delete<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add("DELETE", MethodFilter::DELETE, path, access, handler)
    }

    fn add<H: Handler<T, Shared>, T: 'static>(
        mut self,
        method: &'static str,
        filter: MethodFilter,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        self.router = self.router.route(path, on(filter, handler));
        self.table.push(Endpoint { method, path, access });
        self
    }
}
