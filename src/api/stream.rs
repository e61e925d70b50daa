//! A byte stream with manners: a client that takes nothing is given up after a while, one that is
//! still sending gets to read its answer before the connection closes, and even what the HTTP
//! machinery answers on its own is a problem document.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{error, limits::Limits};

/// See the module.
#[derive(Debug)]
pub struct Polite<S> {
    inner: S,
    write_timeout: Duration,
    /// Runs while a write is blocked.
    blocked: Option<Pin<Box<Sleep>>>,
    linger: Duration,
    closing: Closing,
    /// Bytes that stand in for what was handed in, and how many of them are out.
    instead: Option<(Vec<u8>, usize)>,
}

#[derive(Debug)]
enum Closing {
    No,
    /// Our side is closed; swallowing what the other side still sends.
    Lingering(Pin<Box<Sleep>>),
}

impl<S> Polite<S> {
    #[must_use]
    pub fn new(inner: S, limits: &Limits) -> Self {
        Self {
            inner,
            write_timeout: limits.write,
            blocked: None,
            linger: limits.linger,
            closing: Closing::No,
            instead: None,
        }
    }

    /// Passes a result on, or gives up when the client has taken nothing for too long.
    fn within_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.blocked = None;
            return poll;
        }
        let timeout = self.write_timeout;
        let sleep = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> Polite<S> {
    /// Writes what stands in for something else, if there is any.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, at)) = &mut self.instead {
            if *at == bytes.len() {
                self.instead = None;
                break;
            }
            let poll = Pin::new(&mut self.inner).poll_write(cx, &bytes[*at..]);
            if let Poll::Ready(Ok(0)) = poll {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Poll::Ready(Ok(written)) = poll {
                *at += written;
            }
            let poll = poll.map_ok(|_| ());
            ready!(self.within_time(cx, poll))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Polite<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Polite<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_instead(cx))?;
        if let Some(problem) = stand_in(buf) {
            this.instead = Some((problem, 0));
            // Taken whole: the flush that follows writes the rest.
            let _ = this.poll_instead(cx)?;
            return Poll::Ready(Ok(buf.len()));
        }
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.within_time(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_instead(cx))?;
        let poll = Pin::new(&mut this.inner).poll_flush(cx);
        this.within_time(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.closing, Closing::No) {
            ready!(this.poll_instead(cx))?;
            let poll = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.within_time(cx, poll))?;
            let until = Instant::now() + this.linger;
            this.closing = Closing::Lingering(Box::pin(tokio::time::sleep_until(until)));
        }
        let Closing::Lingering(sleep) = &mut this.closing else { return Poll::Ready(Ok(())) };
        let mut scratch = [0; 8192];
        loop {
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                // The end, or a reset, which is one as well.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// hyper answers what it cannot parse by itself: a status and no body. Nothing of ours looks like
/// that, so it can be told apart, and replaced with the same status and a problem document.
fn stand_in(buf: &[u8]) -> Option<Vec<u8>> {
    let code = buf.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let status = StatusCode::from_bytes(code).ok().filter(StatusCode::is_client_error)?;
    let head = std::str::from_utf8(buf).ok()?.to_ascii_lowercase();
    if !head.ends_with("\r\n\r\n") || head.contains("\r\ncontent-type:") {
        return None;
    }
    let (reason, detail) = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
            "request_head_too_large",
            "the request's head is larger than 32 KiB or has more than 100 fields",
        ),
        StatusCode::URI_TOO_LONG => ("uri_too_long", "the request's target is too long"),
        _ => ("malformed_request", "this is not an HTTP/1.1 request"),
    };
    let problem = error::Problem::new(status, reason, detail);
    let body = serde_json::to_string(problem.view()).ok()?;
    let words = status.canonical_reason().unwrap_or_default();
    let response = format!(
        "HTTP/1.1 {} {words}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        error::PROBLEM_JSON,
        body.len(),
    );
    Some(response.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_without_a_body_of_ours_are_replaced() {
        let bare = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = String::from_utf8(stand_in(bare).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(text.contains("malformed_request"), "{text}");

        let ours = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\n\r\n";
        assert_eq!(stand_in(ours), None);
        assert_eq!(stand_in(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(stand_in(b"{\"title\":\"HTTP/1.1 400 \"}"), None);
    }
}
