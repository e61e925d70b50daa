//! `vervet`: chaos engineering that cannot take more than the owner allowed.
//!
//! The one idea: **what decides cannot act, and what acts does not decide.**
//! ARCHITECTURE.md has the map and the invariants; the modules below are in reading order.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod demo;
pub mod document;
pub mod experiment;
pub mod fault;
pub mod halt;
pub mod host;
pub mod journal;
pub mod policy;
pub mod probe;
pub mod runner;
pub mod schedules;
pub mod service;
pub mod state_file;
pub mod units;
pub mod view;
pub mod warden;
