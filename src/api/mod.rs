//! The REST API: parse, enqueue, render.
//!
//! It decides nothing and touches nothing: requests go to the loop through [`crate::runner::Handle`],
//! answers come from its snapshots. It runs on threads of its own (`server`), and bounds what any
//! client can take (`limits`, `pool`, `stream`). `access` says who is calling, `gate` what each
//! route needs, `routes` has the handlers, `error` is the only place that turns errors of other
//! parts into statuses, `openapi` completes the document that describes all of it.

pub mod access;
mod app;
mod body;
pub mod error;
pub mod gate;
pub mod limits;
pub mod listen;
mod metrics;
mod openapi;
mod pool;
mod request;
mod routes;
mod server;
mod service;
mod stream;
pub mod token;

pub use limits::Limits;
pub use listen::ServeError;
pub use server::{Server, serve};
pub use token::new_token;
