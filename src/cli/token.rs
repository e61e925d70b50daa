//! `vervet token new`: a secret for its bearer, a digest for the policy.

use serde_json::json;

use crate::cli::{Failure, Outcome, args::Token, exit::Exit, ui::Ui};

/// Prints the secret once, on standard output, and the lines for the policy.
///
/// # Errors
/// When the system gives no random bytes, or the name is no good.
pub fn token(args: &Token, ui: &Ui) -> Outcome {
    let Token::New { name, role } = args;
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        let rule = "letters, digits, `-`, `_` and `.`, at most 64 of them";
        return Err(Failure::usage(format!("no name for a token: {name:?}; it may have {rule}")));
    }
    let (secret, sha256) = crate::api::new_token()
        .map_err(|error| Failure::failed(format!("failed to make a secret: {error}")))?;
    let role = role.as_str();
    if ui.json {
        ui.print_json(&json!({ "name": name, "role": role, "secret": secret, "sha256": sha256 }));
        return Ok(Exit::Passed);
    }
    // The secret alone goes to standard output, so that `> file` is all it takes to keep it.
    ui.say(&secret);
    ui.warn(format!(
        "this secret is shown only once; for the policy:\n\n\
         [[api.token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{sha256}\""
    ));
    Ok(Exit::Passed)
}
