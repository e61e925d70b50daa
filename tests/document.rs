//! Documents: valid ones are read and written back without loss, wrong ones are told what is wrong.

#[path = "document/golden.rs"]
mod golden;
#[path = "document/library.rs"]
mod library;
#[path = "document/property.rs"]
mod property;
#[path = "document/valid.rs"]
mod valid;
#[path = "document/wrong_checks.rs"]
mod wrong_checks;
