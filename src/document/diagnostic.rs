//! What is wrong with a document, and how it is shown.
//!
//! A [`Diagnostic`] names a place and says what is wrong there and what would be right. Showing it
//! needs the source again; the source is never kept here.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Longer lines are not shown, only named: nobody reads them.
const LONGEST_LINE: usize = 1000;

/// Every error of one document, in order of position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    pub file: String,
    /// Never empty when returned as an error.
    pub items: Vec<Diagnostic>,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// One sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Bytes of the source.
    pub span: Option<Range<usize>>,
    /// Such as `step[1].delay`; counted from 0. Empty: the document as a whole.
    pub path: String,
    /// Counted from 1.
    pub line: Option<usize>,
    /// In characters, counted from 1.
    pub column: Option<usize>,
}

impl Diagnostics {
    /// Sorts the items by position and fills in lines and columns.
    #[must_use]
    pub fn new(file: &str, source: &str, mut items: Vec<Diagnostic>) -> Self {
        items.sort_by_key(|item| item.span.as_ref().map(|span| span.start));
        for item in &mut items {
            if let Some(span) = &item.span {
                let line = Line::of(source, span);
                (item.line, item.column) = (Some(line.number), Some(line.column()));
            }
        }
        Self { file: file.to_owned(), items }
    }

    /// A compiler's view of every error: place, source line, caret, what is wrong, what to do.
    #[must_use]
    pub fn render(&self, source: &str, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let shown: Vec<String> =
            self.items.iter().map(|item| renderer.render(&[self.group(item, source)])).collect();
        shown.join("\n\n")
    }

    fn group<'a>(&'a self, item: &'a Diagnostic, source: &'a str) -> Group<'a> {
        // Without a line to show, the path says where, unless the message does already.
        let said = item.path.is_empty() || item.message.contains(&format!("`{}`", item.path));
        let title = match item.span {
            None if !said => format!("`{}`: {}", item.path, item.message),
            _ => item.message.clone(),
        };
        let group = Group::with_title(Level::ERROR.primary_title(title));
        let group = match &item.span {
            Some(span) if Line::of(source, span).text.len() <= LONGEST_LINE => {
                group.element(self.snippet(span, source))
            }
            _ => group.element(self.origin(item)),
        };
        match &item.help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        }
    }

    /// Only the line of the error is handed over: documents may be large.
    fn snippet<'a>(
        &'a self,
        span: &Range<usize>,
        source: &'a str,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let line = Line::of(source, span);
        Snippet::source(line.text)
            .path(self.file.as_str())
            .line_start(line.number)
            .annotation(AnnotationKind::Primary.span(line.marked))
    }

    fn origin(&self, item: &Diagnostic) -> Origin<'_> {
        let origin = Origin::path(self.file.as_str());
        match (item.line, item.column) {
            (Some(line), Some(column)) => origin.line(line).char_column(column),
            _ => origin,
        }
    }
}

/// One line for each error, for logs and where there is no source at hand.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.items.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if let (Some(line), Some(column)) = (item.line, item.column) {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": {item}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostic {
    /// An error at a path, with no place in the source (yet).
    #[must_use]
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            span: None,
            path: path.into(),
            line: None,
            column: None,
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// The line of the source that a span begins in.
struct Line<'a> {
    number: usize,
    text: &'a str,
    /// The part of `text` that is meant.
    marked: Range<usize>,
}

impl<'a> Line<'a> {
    fn of(source: &'a str, span: &Range<usize>) -> Self {
        let at = floor_boundary(source, span.start);
        let start = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = source[at..].find('\n').map_or(source.len(), |newline| at + newline);
        let text = source[start..end].trim_end_matches('\r');
        let from = (at - start).min(text.len());
        let to = (floor_boundary(source, span.end).max(at) - start).min(text.len());
        let number = source[..start].bytes().filter(|byte| *byte == b'\n').count() + 1;
        Self { number, text, marked: from..to.max(from) }
    }

    fn column(&self) -> usize {
        self.text[..self.marked.start].chars().count() + 1
    }
}

fn floor_boundary(source: &str, at: usize) -> usize {
    source.floor_char_boundary(at)
}
