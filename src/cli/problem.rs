//! What the agent says when it says no (RFC 9457), and how people get to read it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::{exit::Exit, text};

/// A problem document, as far as it is known; anything else in it is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(default)]
    pub status: u16,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub detail: Option<String>,
    /// Stable, for programs.
    #[serde(default)]
    pub reason: Option<String>,
    /// What is wrong in a document, each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Value>,
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl Problem {
    /// Out of the body of an answer, whatever it is.
    #[must_use]
    pub fn parse(status: u16, body: &[u8]) -> Self {
        let mut problem: Self = serde_json::from_slice(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body);
            let detail = text::fit(text.trim(), 300);
            Self { detail: (!detail.is_empty()).then_some(detail), ..Self::default() }
        });
        problem.status = status;
        problem
    }

    /// How a command ends that meets it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.status {
            // The agent answers, and would not begin.
            503 if self.reason.as_deref() == Some("journal_unavailable") => Exit::Refused,
            401 | 403 | 502..=504 => Exit::Unreachable,
            // The request is fine, and this host, as it is, will not or cannot do it.
            409 => Exit::Refused,
            400..=499 => Exit::Usage,
            _ => Exit::Failed,
        }
    }

    /// One paragraph, then the errors one by one.
    #[must_use]
    pub fn render(&self) -> String {
        let title = if self.title.is_empty() { "the agent refused" } else { &self.title };
        let mut out = self.detail.clone().unwrap_or_else(|| format!("{title} ({})", self.status));
        for error in &self.errors {
            out.push('\n');
            out.push_str(&render_error(error));
        }
        match self.status {
            401 => out.push_str(
                "\nhelp: name a file with a valid token: --token-file FILE (`vervet token new NAME` makes one)",
            ),
            403 => out.push_str("\nhelp: this caller's role does not allow it; see [[api.token]] in the policy"),
            _ => {}
        }
        text::clean(&out)
    }
}

fn render_error(error: &Value) -> String {
    if let Some(rendered) = error["rendered"].as_str() {
        return rendered.trim_end().to_owned();
    }
    let message = match (error.as_str(), error["message"].as_str().or(error["detail"].as_str())) {
        (Some(text), _) | (None, Some(text)) => text.to_owned(),
        (None, None) => error.to_string(),
    };
    let place = match (error["line"].as_u64(), error["column"].as_u64()) {
        (Some(line), Some(column)) => format!("line {line}, column {column}: "),
        (Some(line), None) => format!("line {line}: "),
        _ => error["path"]
            .as_str()
            .or(error["pointer"].as_str())
            .map_or(String::new(), |p| format!("{p}: ")),
    };
    let help = error["help"].as_str().map_or(String::new(), |help| format!(" (help: {help})"));
    format!("  {place}{message}{help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_a_paragraph_and_a_list() {
        let body = br#"{"title":"invalid","detail":"the experiment is not valid","reason":"invalid_document",
            "errors":[{"line":3,"column":7,"message":"unknown key `singal`","help":"did you mean `signal`?"}]}"#;
        let problem = Problem::parse(422, body);
        assert_eq!(problem.exit(), Exit::Usage);
        assert_eq!(
            problem.render(),
            "the experiment is not valid\n  line 3, column 7: unknown key `singal` (help: did you mean `signal`?)"
        );
    }

    #[test]
    fn what_the_host_will_not_do_is_3_and_a_wrong_request_is_2() {
        let exit = |status| Problem::parse(status, br#"{"reason":"some_reason"}"#).exit();
        assert_eq!(exit(409), Exit::Refused);
        assert_eq!(exit(422), Exit::Usage);
        let journal = Problem::parse(503, br#"{"reason":"journal_unavailable"}"#);
        assert_eq!(journal.exit(), Exit::Refused);
        assert_eq!(Problem::parse(422, b"?").exit(), Exit::Usage);
        assert_eq!(Problem::parse(404, b"{}").exit(), Exit::Usage);
    }

    #[test]
    fn not_being_let_in_is_seven_whatever_the_body_is() {
        for status in [401, 403, 503] {
            assert_eq!(Problem::parse(status, b"<html>").exit(), Exit::Unreachable);
        }
    }
}
