//! From nothing to a fault: a package is installed as an owner would, and does nothing until told so.

use crate::{
    prepared::{PACKAGE, Stage},
    story::story,
};

#[test]
fn installed_leashed_and_then_unleashed() {
    story("installed_leashed_and_then_unleashed", Stage::Booted, |guest| {
        guest.check("systemctl is-system-running");
    });
}
