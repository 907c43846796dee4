//! The control plane: what a person or program may ask of a gateway, over HTTP/JSON on a unix socket.
//!
//! It decides nothing about data: it parses what was asked, hands it to the [`backend::Backend`], and says how it
//! went. The command line is a client of it and shares [`model`]; nothing here knows threads of the data path.

pub mod api;
pub mod audit;
pub mod backend;
pub mod catalogue;
pub mod event_codes;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod name;
pub mod retain;
pub mod samples;
pub(crate) mod schema;
pub mod selector;
pub mod server;
pub mod tokens;
pub mod turned_away;
pub(crate) mod wire;
