//! What the audience reads. Every line fits 80 columns, whatever is told.

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use crate::cli::{
    text::{fit, wrap},
    ui::{Style, Tone, Ui},
};

/// Tells the story. Cheap to clone; lines of different tellers do not mix.
#[derive(Debug, Clone)]
pub struct Narrator {
    style: Style,
    told: Arc<Mutex<Vec<String>>>,
}

impl Narrator {
    #[must_use]
    pub fn new(ui: &Ui) -> Self {
        // Wider terminals would make long lines, not better reading.
        let style = Style { width: ui.style.width.clamp(40, 80), ..ui.style };
        Self { style, told: Arc::default() }
    }

    /// The head of an act.
    pub fn title(&self, text: &str) {
        self.line("");
        let text = fit(text, self.style.width);
        self.line(&self.style.paint(Tone::Strong, &text));
    }

    /// A paragraph.
    pub fn tell(&self, text: &str) {
        wrap(text, self.style.width).iter().for_each(|line| self.line(line));
    }

    /// A command as a user would type it.
    pub fn command(&self, text: &str) {
        let text = fit(&format!("  $ {text}"), self.style.width);
        self.line(&self.style.paint(Tone::Dim, &text));
    }

    /// What a command says: indented, wrapped.
    pub fn output(&self, text: &str) {
        for line in text.lines() {
            for part in wrap(line, self.style.width.saturating_sub(4)) {
                self.line(&format!("    {part}"));
            }
        }
    }

    /// Lines that were rendered for this style less four columns.
    pub fn rendered(&self, lines: &[String]) {
        lines.iter().for_each(|line| self.line(format!("    {line}").trim_end()));
    }

    /// The style for [`Self::rendered`].
    #[must_use]
    pub fn inner(&self) -> Style {
        Style { width: self.style.width.saturating_sub(4), ..self.style }
    }

    /// One line about what happens meanwhile.
    pub fn aside(&self, text: &str) {
        let text = fit(&format!("    | {text}"), self.style.width);
        self.line(&self.style.paint(Tone::Dim, &text));
    }

    /// How an act came out.
    pub fn mark(&self, tone: Tone, word: &str, text: &str) {
        let lines = wrap(&format!("{word}: {text}"), self.style.width.saturating_sub(2));
        for (at, line) in lines.iter().enumerate() {
            let line = if at == 0 { format!("> {line}") } else { format!("  {line}") };
            self.line(&self.style.paint(tone, &line));
        }
    }

    /// Everything that was told, for the transcript.
    #[must_use]
    pub fn transcript(&self) -> String {
        let mut text = self.told.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        text.push('\n');
        text
    }

    fn line(&self, line: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed pipe ends the reading, not the play.
        let _ = writeln!(io::stdout().lock(), "{line}");
        told.push(line.to_owned());
    }
}
