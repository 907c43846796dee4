//! Routes and their descriptions, made in one step: what a handler takes and answers is read off its own type, so that no route can be
//! without a description, and none can say something else than it does.

use std::any::type_name;
use std::future::Future;

use axum::Router;
use axum::extract::State;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, http::Method};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Api;
use super::parts::{Answered, Body, Parameters, Segments};
use crate::control::name::Name;
use crate::control::schema::Schemas;

/// All routes, and what is said of them.
pub(super) struct Routes {
    router: Router<Api>,
    paths: Map<String, Value>,
    schemas: Schemas,
}

/// What answers one method of a route.
pub(super) struct Operation {
    method: Method,
    handler: MethodRouter<Api>,
    about: &'static str,
    id: &'static str,
    describe: fn(&mut Description<'_>),
}

/// What is said of an operation.
pub(super) struct Description<'a> {
    path: &'a str,
    schemas: &'a mut Schemas,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
}

macro_rules! methods {
    ($($name:ident $method:ident;)*) => {$(
        /// An operation, with what it does in a sentence or two.
        pub(super) fn $name<H, T, D>(handler: H, about: &'static str) -> Operation
        where
            H: Handler<T, Api> + Described<D>,
            T: 'static,
        {
            let id = type_name::<H>().rsplit("::").next().unwrap_or_default();
            let method = Method::$method;
            Operation { method, handler: on(MethodFilter::$method, handler), about, id, describe: H::describe }
        }
    )*};
}

methods! {
    get GET;
    post POST;
    put PUT;
    delete DELETE;
}

impl Routes {
    /// None yet; schemas will lie below `definitions`.
    pub(super) fn new(definitions: &'static str) -> Routes {
        Routes { router: Router::new(), paths: Map::new(), schemas: Schemas::new(definitions) }
    }

    /// With this one.
    pub(super) fn at<const N: usize>(mut self, path: &'static str, operations: [Operation; N]) -> Routes {
        let mut described = Map::new();
        for Operation { method, handler, about, id, describe } in operations {
            let mut description = Description {
                path,
                schemas: &mut self.schemas,
                parameters: Vec::new(),
                body: None,
                answers: Map::new(),
            };
            describe(&mut description);
            let method = method.as_str().to_lowercase();
            described.insert(method, description.into_value(id, about));
            self.router = self.router.route(path, handler);
        }
        self.paths.insert(path.to_owned(), Value::Object(described));
        self
    }

    /// The routes themselves.
    pub(super) fn router(self) -> Router<Api> {
        self.router
    }

    /// What is said of them: by path and method, and the definitions that it refers to.
    pub(super) fn described<T: JsonSchema>(mut self) -> (Map<String, Value>, Map<String, Value>) {
        // Answered by all of them.
        self.schemas.answered::<T>();
        (self.paths, self.schemas.definitions())
    }
}

impl Description<'_> {
    fn into_value(self, id: &str, about: &str) -> Value {
        let mut value = json!({"operationId": id, "summary": about, "responses": self.answers});
        if !self.parameters.is_empty() {
            value["parameters"] = self.parameters.into();
        }
        if let Some(body) = self.body {
            value["requestBody"] = body;
        }
        value["responses"]["default"] = json!({"$ref": "#/components/responses/Failed"});
        value
    }

    fn answer(&mut self, status: StatusCode, said: &str, content: Option<(&str, Value)>) {
        let mut answer = json!({"description": said});
        if let Some((kind, schema)) = content {
            answer["content"][kind]["schema"] = schema;
        }
        // One that is answered in two forms is answered in either.
        let status = status.as_str().to_owned();
        match self.answers.get_mut(&status) {
            Some(other) => {
                let schema = &mut other["content"]["application/json"]["schema"];
                let either = [schema.take(), answer["content"]["application/json"]["schema"].take()];
                *schema = json!({"oneOf": either});
            }
            None => drop(self.answers.insert(status, answer)),
        }
    }

    fn answer_json<T: JsonSchema>(&mut self, status: StatusCode, said: &str) {
        let schema = self.schemas.answered::<T>();
        self.answer(status, said, Some(("application/json", schema)));
    }
}

/// A handler whose type says what it takes and answers.
pub(super) trait Described<D> {
    /// Says it.
    fn describe(description: &mut Description<'_>);
}

macro_rules! described {
    ($($taken:ident),*) => {
        impl<H, F, R, $($taken,)*> Described<($($taken,)*)> for H
        where
            H: Fn($($taken),*) -> F,
            F: Future<Output = Answered<R>>,
            R: Answer,
            $($taken: Taken,)*
        {
            fn describe(description: &mut Description<'_>) {
                $($taken::describe(description);)*
                R::describe(description);
            }
        }
    };
}

described!();
described!(A);
described!(A, B);
described!(A, B, C);

/// What a handler takes of a request.
pub(super) trait Taken {
    /// Says it.
    fn describe(description: &mut Description<'_>);
}

impl Taken for State<Api> {
    fn describe(_: &mut Description<'_>) {}
}

impl<T: Names> Taken for Segments<T> {
    fn describe(description: &mut Description<'_>) {
        let schemas = T::schemas(description.schemas);
        let names = description.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let names: Vec<&str> = names.collect();
        assert_eq!(names.len(), schemas.len(), "{}: as many names as its handler takes", description.path);
        for (name, schema) in names.into_iter().zip(schemas) {
            let about = match name {
                "group" => "The group's name, or its id.",
                "disk" => "The disk's name.",
                "number" => "The test failover's number.",
                "id" => "The job's id.",
                _ => "The name.",
            };
            let parameter =
                json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema});
            description.parameters.push(parameter);
        }
    }
}

impl<T: JsonSchema> Taken for Parameters<T> {
    fn describe(description: &mut Description<'_>) {
        let schema = description.schemas.asked_here::<T>();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let mut schema = without_null(schema);
            let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            let required = required.contains(&json!(name));
            let parameter = json!({"name": name, "in": "query", "required": required, "description": about, "schema": schema});
            description.parameters.push(parameter);
        }
    }
}

impl<T: JsonSchema> Taken for Body<T> {
    fn describe(description: &mut Description<'_>) {
        let schema = description.schemas.asked::<T>();
        // An empty one is an empty object.
        let required = description.schemas.asked_here::<T>().get("required").is_some();
        description.body =
            Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}));
    }
}

/// A query has no word for nothing: what may be nothing is left out.
fn without_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let Some(object) = schema.as_object_mut() else { return schema };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            object.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(forms)) = object.get_mut("anyOf") {
        forms.retain(|form| *form != json!({"type": "null"}));
        if let [Value::Object(one)] = forms.as_slice() {
            let one = one.clone();
            object.remove("anyOf");
            object.extend(one);
        }
    }
    schema
}

/// The names in a path.
pub(super) trait Names {
    /// Their schemas, in their order.
    fn schemas(schemas: &mut Schemas) -> Vec<Value>;
}

macro_rules! one_name {
    ($($name:ty),*) => {$(
        impl Names for $name {
            fn schemas(schemas: &mut Schemas) -> Vec<Value> {
                vec![schemas.asked::<$name>()]
            }
        }
    )*};
}

one_name!(Name, String);

impl<T: JsonSchema> Names for (Name, T) {
    fn schemas(schemas: &mut Schemas) -> Vec<Value> {
        vec![schemas.asked::<Name>(), schemas.asked::<T>()]
    }
}

/// What a handler answers where nothing is wrong.
pub(super) trait Answer: IntoResponse {
    /// Says it.
    fn describe(description: &mut Description<'_>);
}

impl<T: Serialize + JsonSchema> Answer for Json<T> {
    fn describe(description: &mut Description<'_>) {
        description.answer_json::<T>(StatusCode::OK, "It is so, or it was done.");
    }
}

/// Something that was not there before.
pub(super) struct Created<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, Json(self.0)).into_response()
    }
}

impl<T: Serialize + JsonSchema> Answer for Created<T> {
    fn describe(description: &mut Description<'_>) {
        description.answer_json::<T>(StatusCode::CREATED, "It was made.");
    }
}

/// Work that goes on.
pub(super) struct Accepted<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Accepted<T> {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, Json(self.0)).into_response()
    }
}

impl<T: Serialize + JsonSchema> Answer for Accepted<T> {
    fn describe(description: &mut Description<'_>) {
        description.answer_json::<T>(StatusCode::ACCEPTED, "It is begun: the job says how it goes.");
    }
}

/// Nothing is left to tell of.
pub(super) struct Gone;

impl IntoResponse for Gone {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl Answer for Gone {
    fn describe(description: &mut Description<'_>) {
        description.answer(StatusCode::NO_CONTENT, "It is gone.", None);
    }
}

/// One of two answers, as the request was.
pub(super) enum Either<A, B> {
    One(A),
    Other(B),
}

impl<A: IntoResponse, B: IntoResponse> IntoResponse for Either<A, B> {
    fn into_response(self) -> Response {
        match self {
            Either::One(answer) => answer.into_response(),
            Either::Other(answer) => answer.into_response(),
        }
    }
}

impl<A: Answer, B: Answer> Answer for Either<A, B> {
    fn describe(description: &mut Description<'_>) {
        A::describe(description);
        B::describe(description);
    }
}

/// Metrics.
pub(super) struct Scraped(pub(super) Response);

impl IntoResponse for Scraped {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Answer for Scraped {
    fn describe(description: &mut Description<'_>) {
        let schema = json!({"type": "string"});
        let content = Some(("application/openmetrics-text", schema));
        description.answer(StatusCode::OK, "The metrics: docs/metrics.md.", content);
    }
}
