//! A first experiment, from a few answers to a text. Pure: no file, no agent, no question.
//!
//! What is wrong with an answer is decided by the reader of documents, and by nobody else: a draft that
//! has no errors is a valid experiment.

use std::fmt::Write as _;

use clap::ValueEnum;

use crate::{
    cli::lessons::Words,
    document::{self, Format},
};

/// The faults that a draft can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An instance is gone
    Kill,
    /// An instance lives, and answers nobody
    Pause,
    /// Answers come late
    Latency,
    /// So many connections and no more
    Connections,
    /// systemd stops a unit, and starts it again at the end
    Unit,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Latency => "latency",
            Self::Connections => "connections",
            Self::Unit => "unit",
        }
    }

    /// It takes instances away, which are a group's.
    #[must_use]
    pub fn needs_group(self) -> bool {
        matches!(self, Self::Kill | Self::Pause | Self::Unit)
    }
}

/// Whose traffic, by port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// What this host answers to those who call this port of it.
    Listen(u16),
    /// What this host sends to this port of others.
    Port(u16),
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub kind: Kind,
    /// Whose instances are taken, or watched.
    pub group: Option<String>,
    /// Narrows the group, for a unit.
    pub unit: Option<String>,
    pub traffic: Option<Traffic>,
    /// What must go on answering.
    pub url: String,
    pub title: Option<String>,
    pub duration: String,
    pub delay: String,
    pub max: u32,
}

impl Draft {
    /// One with nothing wrong: what a single answer is tried in.
    #[must_use]
    pub fn sample(kind: Kind) -> Self {
        Self {
            kind,
            group: kind.needs_group().then(|| "checkout".to_owned()),
            unit: None,
            traffic: (!kind.needs_group()).then_some(Traffic::Listen(8080)),
            url: "http://127.0.0.1:8080/healthz".to_owned(),
            title: None,
            duration: "30s".to_owned(),
            delay: "100ms".to_owned(),
            max: 40,
        }
    }

    #[must_use]
    pub fn title(&self) -> String {
        if let Some(title) = &self.title {
            return title.clone();
        }
        let who = self.group.as_deref().unwrap_or("The service");
        match (self.kind, self.traffic) {
            (Kind::Kill, _) => format!("{who} survives the loss of one instance"),
            (Kind::Pause, _) => format!("{who} bears an instance that hangs"),
            (Kind::Unit, _) => format!("{who} survives the stop of one of its units"),
            (Kind::Latency, Some(Traffic::Port(port))) => {
                format!("{who} bears slow answers from port {port}")
            }
            (Kind::Latency, _) => format!("Callers of {who} bear slow answers"),
            (Kind::Connections, _) => format!("{who} bears a cap of {} connections", self.max),
        }
    }

    /// A name for its file: `kill-checkout.toml`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let what = match (&self.group, self.traffic) {
            (Some(group), _) => group.clone(),
            (None, Some(Traffic::Listen(port) | Traffic::Port(port))) => port.to_string(),
            (None, None) => "first".to_owned(),
        };
        format!("{}-{what}.toml", self.kind.as_str())
    }

    /// The document.
    #[must_use]
    pub fn text(&self) -> String {
        let words = Words::of(self.kind);
        let mut text = format!(
            "# {}\n#\n# {}\n# {}\n#\n# Every line may be changed; `vervet check` says whether it is still valid.\n\n",
            words.what, words.learn, words.failure
        );
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("title = {}", quoted(&self.title())));
        line(format!("hypothesis = {}", quoted(words.hypothesis)));
        if let Some(group) = &self.group {
            line("\n# What it means to touch: anything else that it would touch is refused. How many of the".to_owned());
            line(
                "# group must stay ready is in the policy of the host, and is its owner's to say."
                    .to_owned(),
            );
            line(format!("groups = [{}]", quoted(group)));
        }
        line("\n# How long the steady state may take to come back after the step.".to_owned());
        line("recovery = \"30s\"".to_owned());
        line("\n# The steady state: it must hold before, during and after the step.".to_owned());
        line("[[probe]]\nname = \"it answers\"".to_owned());
        line(format!("http = {}", quoted(&self.url)));
        line("expect = { status = 200, within = \"1s\" }\nevery = \"500ms\"".to_owned());
        line("tolerate = 2              # misses in a row that are forgiven".to_owned());
        line(format!("\n[[step]]\nname = {}\nfault = \"{}\"", quoted(words.step), self.kind.as_str()));
        self.parameters(&mut line);
        line(format!("duration = {:<15} # {}", quoted(&self.duration), words.duration));
        text
    }

    fn parameters(&self, line: &mut impl FnMut(String)) {
        let group = quoted(self.group.as_deref().unwrap_or_default());
        match self.kind {
            Kind::Kill => {
                line(format!("target = {{ group = {group}, pick = 1 }}"));
                line("signal = \"SIGKILL\"        # or \"SIGTERM\": an orderly stop".to_owned());
            }
            Kind::Pause => line(format!("target = {{ group = {group}, pick = 1 }}")),
            Kind::Unit => {
                let unit = self.unit.as_ref().map(|unit| format!(", unit = {}", quoted(unit)));
                line(format!("target = {{ group = {group}{}, pick = 1 }}", unit.unwrap_or_default()));
                line("action = \"stop\"           # or \"restart\"".to_owned());
            }
            Kind::Latency => {
                line(self.traffic_line());
                line(format!("delay = {}", quoted(&self.delay)));
            }
            Kind::Connections => {
                line(self.traffic_line());
                line(format!("max = {}", self.max));
                line("excess = \"reset\"          # or \"drop\": they hear nothing at all".to_owned());
            }
        }
    }

    fn traffic_line(&self) -> String {
        match self.traffic {
            Some(Traffic::Port(port)) => {
                format!("traffic = {{ port = {port} }}   # what this host sends there")
            }
            Some(Traffic::Listen(port)) => {
                format!("traffic = {{ listen = {port} }} # what this host answers to those who call it")
            }
            None => "traffic = {}".to_owned(),
        }
    }

    /// Everything that is wrong with the answers, each with the flag that it is about.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let Err(errors) = document::experiment(&self.text(), "", Format::Toml) else {
            return Vec::new();
        };
        let mut told: Vec<String> = Vec::new();
        for item in errors.items {
            let help = item.help.map(|help| format!(" ({help})")).unwrap_or_default();
            let text = format!("{}: {}{help}", flag_of(&item.path), item.message);
            if !told.contains(&text) {
                told.push(text);
            }
        }
        told
    }

    /// What the owner could add to the policy, if the group is not in it.
    #[must_use]
    pub fn group_block(&self) -> Option<String> {
        let name = quoted(self.group.as_deref()?);
        let (members, ready) = match self.kind {
            Kind::Unit => {
                let unit = self.unit.clone().unwrap_or_else(|| match &self.group {
                    Some(group) => format!("{group}@*.service"),
                    None => "checkout@*.service".to_owned(),
                });
                (format!("members = {{ unit = {} }}", quoted(&unit)), "ready = \"systemd\"".to_owned())
            }
            _ => (
                "members = { listen = 8080 }      # or by unit, cmdline, name, user, container"
                    .to_owned(),
                "ready = { http = \"http://127.0.0.1:{port}/healthz\", status = 200 }".to_owned(),
            ),
        };
        let mut text = format!("[[group]]\nname = {name}\n");
        let _ = writeln!(text, "expected = 4                     # instances when all is well");
        let _ = writeln!(
            text,
            "floor = 3                        # so many must stay ready, whatever happens"
        );
        let _ = writeln!(text, "{members}\n{ready}");
        Some(text)
    }
}

/// A TOML string of whatever is in it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => drop(write!(quoted, "\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `step[0].delay` comes from `--delay`.
fn flag_of(path: &str) -> &'static str {
    let last = path.rsplit('.').next().unwrap_or_default();
    match last {
        "http" => "--url",
        "title" => "--title",
        "duration" => "--duration",
        "delay" => "--delay",
        "max" => "--max",
        "unit" => "--unit",
        "listen" => "--listen",
        "port" => "--port",
        "traffic" => "--listen or --port",
        _ => "--group",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::experiment::{Check, FaultSpec};

    fn drafts() -> impl Strategy<Value = Draft> {
        let kind = prop::sample::select(Kind::value_variants());
        let group =
            prop::option::of("[A-Za-z0-9._-]{1,64}".prop_filter("a name", |name| !name.is_empty()));
        let port = (1..=u16::MAX, any::<bool>());
        // No control characters, some letter, at most 200 bytes: what a line may be.
        let title = prop::option::of("\\PC{0,40}x");
        let times = (1..86_400_u32, 1..60_000_u32, 0..10_000_000_u32);
        (kind, group, port, title, times, "[a-z/.?=&'\"%-]{0,30}").prop_map(
            |(kind, group, (port, listen), title, (duration, delay, max), path)| {
                let group = group.or_else(|| kind.needs_group().then(|| "web".to_owned()));
                let traffic = if listen { Traffic::Listen(port) } else { Traffic::Port(port) };
                Draft {
                    kind,
                    group,
                    unit: None,
                    traffic: (!kind.needs_group()).then_some(traffic),
                    url: format!("http://127.0.0.1:8080/{path}"),
                    title,
                    duration: format!("{duration}s"),
                    delay: format!("{delay}ms"),
                    max,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn valid_answers_give_a_valid_experiment_that_says_the_same(draft in drafts()) {
            prop_assert_eq!(draft.errors(), Vec::<String>::new());
            let experiment = document::experiment(&draft.text(), "x", Format::Toml).unwrap();
            prop_assert_eq!(&experiment.title, &draft.title());
            let groups: Vec<_> = experiment.groups.iter().map(|group| group.0.clone()).collect();
            prop_assert_eq!(groups, draft.group.iter().cloned().collect::<Vec<_>>());
            let Check::Http(asked) = &experiment.probes[0].check else { panic!("another check") };
            prop_assert_eq!(&asked.url, &draft.url);
            prop_assert_eq!(experiment.steps[0].fault.kind().as_str(), draft.kind.as_str());
            if let FaultSpec::Connections(cap) = &experiment.steps[0].fault {
                prop_assert_eq!(cap.max, Some(draft.max));
            }
            if let Some(block) = draft.group_block() {
                let policy = document::policy(&block, "x").map_err(|errors| errors.render(&block, false));
                prop_assert!(policy.is_ok(), "{:?}", policy);
            }
        }

        #[test]
        fn nothing_that_is_answered_breaks_out_of_its_place(text in any::<String>()) {
            for at in 0..3 {
                let mut draft = Draft::sample(Kind::Kill);
                match at {
                    0 => draft.group = Some(text.clone()),
                    1 => draft.title = Some(text.clone()),
                    _ => draft.url = text.clone(),
                }
                // Whatever is in it stays one value: it is refused, or it is what was answered.
                if let Ok(experiment) = document::experiment(&draft.text(), "x", Format::Toml) {
                    prop_assert_eq!((experiment.steps.len(), experiment.probes.len()), (1, 1));
                    prop_assert_eq!(experiment.title, draft.title());
                } else {
                    prop_assert!(!draft.errors().is_empty());
                }
            }
        }
    }

    #[test]
    fn errors_name_the_flag() {
        let bad = Draft {
            group: Some("two words".to_owned()),
            url: "ftp://x".to_owned(),
            duration: "soon".to_owned(),
            title: Some("a\nb".to_owned()),
            ..Draft::sample(Kind::Kill)
        };
        let errors = bad.errors().join("\n");
        for flag in ["--group", "--url", "--duration", "--title"] {
            assert!(errors.contains(&format!("{flag}: ")), "{flag}: {errors}");
        }
    }
}
