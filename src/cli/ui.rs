//! Where output goes and how it may look: width, colour, character set.
//!
//! Colour only adds to words that say the same. A closed pipe is no error: the reader had enough.

use std::io::{self, IsTerminal, Write};

use crate::cli::args::ColorWhen;

/// How wide output is where there is no terminal to ask.
pub const DEFAULT_WIDTH: usize = 80;

/// How rendered text may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub color: bool,
    /// Block characters; else plain ASCII.
    pub unicode: bool,
    /// In characters.
    pub width: usize,
}

/// What a text means, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Dim,
    Strong,
}

/// Standard output and error of one command.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    pub style: Style,
    /// Print documents, not text.
    pub json: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
}

impl Style {
    /// What golden tests and files get.
    pub const PLAIN: Self = Self { color: false, unicode: true, width: DEFAULT_WIDTH };

    /// `text`, coloured if colours may be used.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31;1",
            Tone::Dim => "2",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

impl Ui {
    /// Looks at the terminal and the environment.
    #[must_use]
    pub fn detect(json: bool, color: ColorWhen) -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => terminal && !dumb && !set("NO_COLOR"),
        };
        let style = Style { color, unicode: utf8_locale(), width: terminal_width(terminal) };
        Self { style, json, terminal: terminal && !dumb }
    }

    /// The style and the number of lines of the terminal as it is now: people resize windows.
    #[must_use]
    pub fn measure(&self) -> (Style, usize) {
        let size = if self.terminal { rustix::termios::tcgetwinsize(io::stdout()).ok() } else { None };
        let (width, height) =
            size.map_or((0, 0), |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        let width = if width == 0 { self.style.width } else { width };
        (Style { width, ..self.style }, if height == 0 { 24 } else { height })
    }

    /// One line, or several, to standard output.
    pub fn say(&self, text: impl AsRef<str>) {
        write_or_leave(&mut io::stdout().lock(), text.as_ref());
    }

    /// One line, or several, to standard error.
    pub fn warn(&self, text: impl AsRef<str>) {
        // Nothing sensible can be done when even standard error is gone.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// A document to standard output.
    pub fn print_json(&self, value: &impl serde::Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.say(text),
            Err(error) => self.warn(format!("error: failed to write JSON: {error}")),
        }
    }

    /// Text without a line end, at once: for frames that are redrawn.
    pub fn draw(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn write_or_leave(out: &mut impl Write, text: &str) {
    match writeln!(out, "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "error: failed to write the output: {error}");
        }
    }
}

fn utf8_locale() -> bool {
    let first = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    // Without any locale (CI, systemd) files and logs are UTF-8 nowadays; only an explicit other
    // character set, or the bare C locale, asks for ASCII.
    first.is_none_or(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}

fn terminal_width(terminal: bool) -> usize {
    let columns = if terminal { rustix::termios::tcgetwinsize(io::stdout()).ok() } else { None };
    match columns.map(|size| usize::from(size.ws_col)) {
        Some(0) | None => DEFAULT_WIDTH,
        Some(columns) => columns,
    }
}
