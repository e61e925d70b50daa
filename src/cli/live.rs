//! Live progress of a run: one frame of text, and a screen that redraws it in place.
//!
//! The frame is a pure function of the views. The screen never scrolls what it does not own: it
//! remembers how many lines it drew and replaces exactly those.

use jiff::Timestamp;

use crate::{
    cli::{
        render,
        text::{between, clock, fit, pad, width},
        ui::{Style, Tone, Ui},
    },
    view::{GroupView, RunView},
};

/// What the progress shows now.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub run: &'a RunView,
    pub groups: &'a [GroupView],
    /// The latest line of the event log.
    pub latest: Option<&'a str>,
    /// What the user should know now: aborting, reconnecting.
    pub notice: Option<&'a str>,
    pub now: Timestamp,
}

/// The lines of one frame; none is wider than the style's width.
#[must_use]
pub fn frame(scene: Scene<'_>, style: Style) -> Vec<String> {
    let Scene { run, groups, latest, notice, now } = scene;
    let (word, tone) = render::verdict_word(run);
    let until = run.finished_at.unwrap_or(now);
    let right = format!("{word} {}", clock(between(run.created_at, until)));
    let room = style.width.saturating_sub(width(&right) + 2);
    let head = format!("{}  {}", pad(&run.title, room), style.paint(tone, &right));
    let mut lines = vec![head];
    lines.extend(render::groups(groups, now, style));
    lines.extend(render::steps(&run.steps, now, style));
    lines.extend(render::probes(&run.probes, style));
    if let Some(latest) = latest {
        lines.push(format!("  {}", style.paint(Tone::Dim, &fit(latest, style.width.saturating_sub(2)))));
    }
    if let Some(notice) = notice {
        lines.push(style.paint(Tone::Strong, &fit(notice, style.width)));
    }
    lines
}

/// The part of the terminal that the progress occupies.
#[derive(Debug, Default)]
pub struct Screen {
    drawn: usize,
}

impl Screen {
    /// Replaces what was drawn before. At most `height` lines, the last ones winning.
    pub fn draw(&mut self, ui: &Ui, lines: &[String], height: usize) {
        let from = lines.len().saturating_sub(height.max(1));
        // Line by line over the old picture, then what is left of it: nothing flickers.
        let mut text = self.home();
        for line in &lines[from..] {
            text.push_str(line);
            text.push_str("\u{1b}[K\n");
        }
        text.push_str("\u{1b}[J");
        self.drawn = lines.len() - from;
        ui.draw(&text);
    }

    /// Takes the progress away, so that what follows stands in its place.
    pub fn clear(&mut self, ui: &Ui) {
        let text = self.home() + "\u{1b}[J";
        self.drawn = 0;
        ui.draw(&text);
    }

    /// Cursor to the first line drawn (ECMA-48: CUU; EL and ED erase).
    fn home(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\u{1b}[{}A\r", self.drawn) }
    }
}
