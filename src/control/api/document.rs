//! The OpenAPI text: the routes' descriptions, with what holds for all of them. Committed as docs/api/openapi.json, which a test compares.

use serde_json::{Value, json};

use super::routes::Routes;
use crate::control::model::ApiError;
use crate::control::schema::readable;

/// Where the definitions are in it.
pub(super) const DEFINITIONS: &str = "/components/schemas";

const ABOUT: &str = "\
What a person or a program may ask of a gateway. Names of fields end in their unit: sizes are bytes, durations milliseconds; times are \
RFC 3339 in UTC. Bodies are JSON whatever the content type says; an empty one is an empty object, and what a field of a request may be \
left out of stays as it is. Clients ignore fields and words that they do not know: later versions add some, and take none away.\n\n\
On the unix socket, who may connect is decided by its permissions. Over TCP each request bears a token: docs/api.md.";

const FAILED: &str = "\
It was refused, or failed; `message` is one line for people that says what to do. Status and `kind`: 400 `invalid`, `protocol`; \
401 without a good token, and 403 where its role does not do, `denied`; \
404 `not_found`; 405 a route without that method; 409 `already_exists`, `latched`, `fenced`, `no_key`, `locked`; 500 `io`, `corrupt`; 501 \
`unsupported`; 503 `shutdown`, or too many clients; 507 `no_space`.";

const TOKEN: &str = "\
Over TCP, a token that `POST /v1/tokens` made. One of the role read may only GET. On a unix socket nobody is asked for one.";

/// All of it.
pub(super) fn of(routes: Routes) -> Value {
    let (paths, definitions) = routes.described::<ApiError>();
    let failed = json!({
        "description": FAILED,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ApiError"}}},
    });
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Afterimage",
            "version": "v1",
            "description": ABOUT,
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "paths": paths,
        "security": [{"token": []}, {}],
        "components": {
            "schemas": definitions,
            "responses": {"Failed": failed},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": TOKEN}},
        },
    });
    readable(&mut document);
    document
}
