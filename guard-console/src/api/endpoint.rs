//! The table of HTTP endpoints: every route says who may call it, so that a test can try them all; those of the API also
//! stand in its document.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use guard_proto::rest::Role;

use super::describe::{Describe, Description};
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

/// How an endpoint stands in the document.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Names it among all.
    pub id: &'static str,
    /// One sentence.
    pub summary: &'static str,
    pub describe: fn(&mut Description<'_>),
}

#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    /// `None`: a page.
    pub operation: Option<Operation>,
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
        self.add(MethodFilter::GET, "GET", path, access, handler, None)
    }

    #[must_use]
    pub fn post<H: Handler<T, Shared>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(MethodFilter::POST, "POST", path, access, handler, None)
    }

    fn add<H: Handler<T, Shared>, T: 'static>(
        mut self,
        filter: MethodFilter,
        method: &'static str,
        path: &'static str,
        access: Access,
        handler: H,
        operation: Option<Operation>,
    ) -> Self {
        self.router = self.router.route(path, on(filter, handler));
        self.table.push(Endpoint {
            method,
            path,
            access,
            operation,
        });
        self
    }
}

/// Endpoints of the API: the same, with a name and a sentence each, and described by their types.
#[derive(Debug, Default)]
pub struct Operations {
    endpoints: Endpoints,
    said: (&'static str, &'static str),
}

impl Operations {
    /// The name and the sentence of the endpoint that comes next.
    #[must_use]
    pub fn say(mut self, id: &'static str, summary: &'static str) -> Self {
        self.said = (id, summary);
        self
    }

    #[must_use]
    pub fn get<H: Handler<T, Shared> + Describe<T>, T: 'static>(
        self,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::GET, "GET", path, access, handler)
    }

    #[must_use]
    pub fn post<H: Handler<T, Shared> + Describe<T>, T: 'static>(
        self,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::POST, "POST", path, access, handler)
    }

    #[must_use]
    pub fn put<H: Handler<T, Shared> + Describe<T>, T: 'static>(
        self,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::PUT, "PUT", path, access, handler)
    }

    #[must_use]
    pub fn delete<H: Handler<T, Shared> + Describe<T>, T: 'static>(
        self,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::DELETE, "DELETE", path, access, handler)
    }

    fn add<H: Handler<T, Shared> + Describe<T>, T: 'static>(
        mut self,
        filter: MethodFilter,
        method: &'static str,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self {
        // Taken, so that whoever forgets to say one gets none, which a test finds.
        let (id, summary) = std::mem::take(&mut self.said);
        let operation = Operation {
            id,
            summary,
            describe: <H as Describe<T>>::describe,
        };
        self.endpoints = self
            .endpoints
            .add(filter, method, path, access, handler, Some(operation));
        self
    }

    #[must_use]
    pub fn done(self) -> Endpoints {
        self.endpoints
    }
}
