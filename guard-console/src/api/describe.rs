//! What a handler takes and gives, said by its types: the document of the API is made from it.
//!
//! Owns how extractors and answers stand in OpenAPI. It is given a handler's type. Nothing here is said a second time by
//! hand, so that the document can say nothing that a handler does not do.

use std::future::Future;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::identity::Shared;
use crate::app::Error;

/// One operation, while it is described.
#[derive(Debug)]
pub struct Description<'g> {
    /// Schemas of what is sent.
    pub taken: &'g mut SchemaGenerator,
    /// Schemas of what is answered.
    pub given: &'g mut SchemaGenerator,
    /// Parameter objects.
    pub parameters: Vec<Value>,
    /// The request body object.
    pub body: Option<Value>,
    /// By status.
    pub responses: Map<String, Value>,
}

impl Description<'_> {
    /// A header that may be sent.
    pub fn header(&mut self, name: &str, words: &str) {
        self.parameters.push(json!({
            "name": name,
            "in": "header",
            "required": false,
            "description": words,
            "schema": {"type": "string"},
        }));
    }

    /// An answer of `status` with one kind of content.
    pub fn answer(&mut self, status: u16, words: &str, kind: &str, schema: &Value) {
        let content = Map::from_iter([(kind.to_owned(), json!({"schema": schema}))]);
        self.responses.insert(
            status.to_string(),
            json!({"description": words, "content": Value::Object(content)}),
        );
    }
}

/// A handler's argument.
pub trait Takes {
    /// Adds what it asks for; nothing for what is not sent.
    fn describe(_about: &mut Description<'_>) {}
}

/// What a handler answers.
pub trait Gives {
    fn describe(about: &mut Description<'_>);
}

/// A handler, all of it. `T` is axum's mark of its arguments.
pub trait Describe<T> {
    fn describe(about: &mut Description<'_>);
}

macro_rules! describe {
    ($($argument:ident)*) => {
        impl<H, F, R, M, $($argument: Takes),*> Describe<(M, $($argument,)*)> for H
        where
            H: FnOnce($($argument),*) -> F,
            F: Future<Output = R>,
            R: Gives,
        {
            fn describe(about: &mut Description<'_>) {
                $($argument::describe(about);)*
                R::describe(about);
            }
        }
    };
}

describe!(A);
describe!(A B);
describe!(A B C);
describe!(A B C D);
describe!(A B C D E);

impl Takes for State<Shared> {}

impl<T: Gives> Gives for Result<T, Error> {
    fn describe(about: &mut Description<'_>) {
        T::describe(about);
    }
}

impl<T: JsonSchema> Gives for Json<T> {
    fn describe(about: &mut Description<'_>) {
        let schema = about.given.subschema_for::<T>().to_value();
        about.answer(200, "Done.", "application/json", &schema);
    }
}

impl Gives for NoContent {
    fn describe(about: &mut Description<'_>) {
        about
            .responses
            .insert("204".to_owned(), json!({"description": "Done."}));
    }
}
