//! The questions of `vervet new`: plain lines, each with a default, asked again until the answer is one.
//!
//! Reads lines and writes prompts, and knows nothing of terminals. The end of the input is an error: what
//! was not answered was not meant.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use clap::ValueEnum as _;

use crate::cli::draft::{Draft, Kind, Traffic};

/// What is known so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub kind: Option<Kind>,
    pub group: Option<String>,
    pub unit: Option<String>,
    pub traffic: Option<Traffic>,
    pub url: Option<String>,
    pub title: Option<String>,
    pub output: Option<PathBuf>,
    pub duration: String,
    pub delay: String,
    pub max: u32,
}

impl Known {
    /// The flags without which there is no experiment.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.kind.is_none() {
            missing.push("--kind");
        }
        if self.kind.is_none_or(Kind::needs_group) && self.group.is_none() {
            missing.push("--group");
        }
        if self.kind.is_some_and(|kind| !kind.needs_group()) && self.traffic.is_none() {
            missing.push("--listen or --port");
        }
        if self.url.is_none() {
            missing.push("--url");
        }
        missing
    }

    /// The draft, with a sample's value where nothing is known.
    #[must_use]
    pub fn draft(&self) -> Draft {
        let sample = Draft::sample(self.kind.unwrap_or(Kind::Kill));
        let takes = sample.kind.needs_group();
        Draft {
            group: self.group.clone().or(sample.group),
            unit: self.unit.clone().filter(|_| sample.kind == Kind::Unit),
            traffic: self.traffic.filter(|_| !takes).or(sample.traffic),
            url: self.url.clone().unwrap_or(sample.url),
            title: self.title.clone(),
            duration: self.duration.clone(),
            delay: self.delay.clone(),
            max: self.max,
            kind: sample.kind,
        }
    }
}

/// Where questions go and answers come from.
#[derive(Debug)]
pub struct Questions<R, W> {
    pub input: R,
    pub output: W,
}

impl<R: BufRead, W: Write> Questions<R, W> {
    /// Asks for all that is not known. `groups`: those of the host, if anybody knows them.
    ///
    /// # Errors
    /// When the input ends.
    pub fn all(&mut self, mut known: Known, groups: Option<&[String]>) -> io::Result<Known> {
        if known.kind.is_none() {
            self.say("What is to happen?")?;
            for kind in Kind::value_variants() {
                let help =
                    kind.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
                self.say(&format!("  {:<12} {}", kind.as_str(), help.unwrap_or_default()))?;
            }
            known.kind = Some(self.answer("kind", Some("kill"), |text| {
                Kind::from_str(text, true).map_err(|_| format!("there is no {text:?} among them"))
            })?);
        }
        let takes = known.kind.is_some_and(Kind::needs_group);
        if known.group.is_none() {
            self.group(&mut known, takes, groups)?;
        }
        if !takes && known.traffic.is_none() {
            self.say("Whose traffic? `listen 8080`: answers to callers of that port of this host;")?;
            self.say("`port 5432`: what this host sends to that port of others.")?;
            known.traffic = Some(self.answer("traffic", Some("listen 8080"), traffic)?);
        }
        if known.url.is_none() {
            let tried = known.clone();
            let url = self.answer(
                "what must go on answering (URL)",
                Some("http://127.0.0.1:8080/healthz"),
                |text| good(&Known { url: Some(text.to_owned()), ..tried.clone() }, text),
            )?;
            known.url = Some(url);
        }
        if known.title.is_none() {
            let (tried, usual) = (known.clone(), known.draft().title());
            let title = self.answer("title", Some(&usual), |text| {
                good(&Known { title: Some(text.to_owned()), ..tried.clone() }, text)
            })?;
            known.title = Some(title);
        }
        if known.output.is_none() {
            let usual = known.draft().file_name();
            known.output =
                Some(PathBuf::from(self.answer("file", Some(&usual), |text| Ok(text.to_owned()))?));
        }
        Ok(known)
    }

    fn group(&mut self, known: &mut Known, takes: bool, groups: Option<&[String]>) -> io::Result<()> {
        let first = groups.and_then(<[String]>::first).map(String::as_str);
        if let Some(groups) = groups.filter(|groups| !groups.is_empty()) {
            self.say(&format!("The groups of this host: {}", groups.join(", ")))?;
        }
        let tried = known.clone();
        let named = |text: &str| good(&Known { group: Some(text.to_owned()), ..tried.clone() }, text);
        known.group = if takes {
            Some(self.answer("group whose instance is taken", first, named)?)
        } else {
            self.answer("group to watch, or none", Some(first.unwrap_or("none")), |text| {
                if text == "none" { Ok(None) } else { named(text).map(Some) }
            })?
        };
        Ok(())
    }

    /// One answer, asked for until it is one.
    fn answer<T>(
        &mut self,
        what: &str,
        usual: Option<&str>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> io::Result<T> {
        loop {
            let default = usual.map(|usual| format!(" [{usual}]")).unwrap_or_default();
            write!(self.output, "{what}{default}: ")?;
            self.output.flush()?;
            let mut line = String::new();
            if self.input.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                writeln!(self.output)?;
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answers ended"));
            }
            let text = match (line.trim(), usual) {
                ("", Some(usual)) => usual,
                (text, _) => text,
            };
            match read(text) {
                Ok(answer) => return Ok(answer),
                Err(why) => self.say(&why)?,
            }
        }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.output, "{line}")
    }
}

/// The answer, if an experiment with it is valid.
fn good(tried: &Known, text: &str) -> Result<String, String> {
    let errors = tried.draft().errors();
    if errors.is_empty() { Ok(text.to_owned()) } else { Err(errors.join("\n")) }
}

fn traffic(text: &str) -> Result<Traffic, String> {
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let read = match text.split_once(char::is_whitespace) {
        Some(("listen", port)) => number(port).map(Traffic::Listen),
        Some(("port", port)) => number(port).map(Traffic::Port),
        _ => None,
    };
    read.ok_or_else(|| "write `listen` or `port`, and a number from 1 to 65535".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Known {
        Known {
            kind: None,
            group: None,
            unit: None,
            traffic: None,
            url: None,
            title: None,
            output: None,
            duration: "30s".to_owned(),
            delay: "100ms".to_owned(),
            max: 40,
        }
    }

    fn asked(known: Known, answers: &str, groups: Option<&[String]>) -> (io::Result<Known>, String) {
        let mut output = Vec::new();
        let mut questions = Questions { input: answers.as_bytes(), output: &mut output };
        let known = questions.all(known, groups);
        (known, String::from_utf8(output).expect("text"))
    }

    #[test]
    fn defaults_are_enough_where_the_groups_are_known() {
        let groups = ["web".to_owned(), "db".to_owned()];
        let (known, said) = asked(nothing(), "\n\n\n\n\n", Some(&groups));
        let known = known.expect("answered");
        assert_eq!((known.kind, known.group.as_deref()), (Some(Kind::Kill), Some("web")));
        assert_eq!(known.output, Some(PathBuf::from("kill-web.toml")));
        assert!(said.contains("web, db"), "{said}");
        assert_eq!(known.draft().errors(), [""; 0]);
    }

    #[test]
    fn a_wrong_answer_is_asked_for_again_with_the_reason() {
        let answers =
            "explode\nlatency\nnone\nlisten 0\nport 5432\nnowhere\nhttp://x/\n\"quotes\" ☃\n\n";
        let (known, said) = asked(nothing(), answers, None);
        let known = known.expect("answered");
        assert_eq!((known.kind, known.traffic), (Some(Kind::Latency), Some(Traffic::Port(5432))));
        assert_eq!((known.group.as_deref(), known.title.as_deref()), (None, Some("\"quotes\" ☃")));
        assert_eq!(known.output, Some(PathBuf::from("latency-5432.toml")));
        for reason in ["explode", "1 to 65535", "`nowhere` is not a URL"] {
            assert!(said.contains(reason), "{reason}: {said}");
        }
        assert_eq!(known.draft().errors(), [""; 0]);
    }

    #[test]
    fn the_end_of_the_answers_is_no_answer() {
        for answers in [
            "",
            "kill\n",
            "kill\nweb\n",
            "kill\nweb\nhttp://x/\n",
            "kill\nweb\nhttp://x/\nt\n",
            "kill\nwe",
        ] {
            let (known, _) = asked(nothing(), answers, None);
            assert_eq!(known.expect_err("it ended").kind(), io::ErrorKind::UnexpectedEof, "{answers:?}");
        }
    }

    #[test]
    fn what_is_known_is_not_asked() {
        let known = Known { kind: Some(Kind::Pause), url: Some("http://x/".to_owned()), ..nothing() };
        assert_eq!(known.missing(), ["--group"]);
        let (answered, said) = asked(known, "web\n\n\n", None);
        assert_eq!(answered.expect("answered").kind, Some(Kind::Pause));
        assert!(!said.contains("What is to happen") && !said.contains("URL"), "{said}");
    }
}
