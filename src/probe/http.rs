//! One question by HTTP, within a time and a size: what all probes over HTTP stand on. What makes an
//! answer a good one is `answer`'s to say, or `prometheus`'s.
//!
//! Plain HTTP/1.1 GET on a new connection each time, so that what is asked is the service and not a
//! pooled connection to an instance that serves no new ones. Redirects are answers, not
//! instructions. `https` is refused rather than half done: a certificate store would cost more
//! memory than all the rest of the idle agent.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Uri,
    body::{Bytes, Incoming},
    header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::experiment::Headers;

const AGENT: &str = concat!("vervet/", env!("CARGO_PKG_VERSION"));

/// The most that is read of the body of a service's answer, in bytes.
pub const BODY_MAX: usize = 64 << 10;

/// The most that is read of a response's head, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Where a URL leads.
struct Destination {
    /// `host:port` as it is connected to.
    address: String,
    /// As the Host header says it.
    host: String,
    path: String,
}

/// Whether a URL can be asked. Templates must have been filled in.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(url: &str) -> Result<(), String> {
    destination(url).map(drop)
}

/// Fills `{port}` and `{pid}` in.
#[must_use]
pub fn fill(template: &str, port: Option<u16>, pid: u32) -> String {
    let filled = template.replace("{pid}", &pid.to_string());
    match port {
        Some(port) => filled.replace("{port}", &port.to_string()),
        None => filled,
    }
}

/// What came back.
pub type Answer = hyper::Response<Incoming>;

/// GETs the URL and has the answer judged; all of it, connecting included, `within`. Headers that
/// are given replace those of every request.
///
/// # Errors
/// What was wrong, in a sentence for people that begins with the URL.
pub async fn get<T, J>(url: &str, headers: &Headers, within: Duration, judge: J) -> Result<T, String>
where
    J: AsyncFnOnce(Answer) -> Result<T, String>,
{
    let destination = destination(url)?;
    match timeout(within, exchange(&destination, headers, judge)).await {
        Ok(result) => result.map_err(|error| format!("{url} {error}")),
        Err(_) => Err(format!("{url} did not answer within {within:?}")),
    }
}

async fn exchange<T, J>(to: &Destination, headers: &Headers, judge: J) -> Result<T, String>
where
    J: AsyncFnOnce(Answer) -> Result<T, String>,
{
    let request = request(to, headers).map_err(|error| format!("cannot be asked: {error}"))?;
    let stream = TcpStream::connect(&to.address)
        .await
        .map_err(|error| format!("does not take a connection: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| format!("does not speak HTTP: {error}"))?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})"));
            format!("gave no HTTP answer: {error}{}", cause.unwrap_or_default())
        })?;
        judge(answer).await
    };
    // The connection has no task of its own: dropped with this future, it is closed at once.
    tokio::select! {
        biased;
        result = ask => result,
        () = async { let _ = connection.await; std::future::pending().await } => unreachable!("pending never ends"),
    }
}

fn request(to: &Destination, headers: &Headers) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&to.path).body(Empty::new()).map_err(|error| error.to_string())?;
    let own = [(HOST, to.host.as_str()), (CONNECTION, "close"), (USER_AGENT, AGENT)];
    let given = headers.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        Ok::<_, String>((name, value.as_str()))
    });
    for header in own.into_iter().map(Ok).chain(given) {
        let (name, value) = header?;
        let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

/// All of a body, if it has at most `most` bytes.
///
/// # Errors
/// When it has more, or breaks off; in words that follow the URL.
pub async fn whole(mut body: Incoming, most: usize) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("broke off its answer: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > most.saturating_sub(read.len()) {
            return Err(format!("answered with more than {most} bytes"));
        }
        read.extend_from_slice(&data);
    }
    Ok(read)
}

/// Looks for words in the first [`BODY_MAX`] bytes of a body, and reads no further than it must.
///
/// # Errors
/// When they are not there; in words that follow the URL.
pub async fn search(mut body: Incoming, wanted: &str) -> Result<(), String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("broke off its answer: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        let room = BODY_MAX.saturating_sub(read.len());
        // What was searched before needs no second search, but for a match across the seam.
        let from = read.len().saturating_sub(wanted.len());
        read.extend_from_slice(&data[..data.len().min(room)]);
        if contains(&read[from..], wanted.as_bytes()) {
            return Ok(());
        }
        if data.len() >= room {
            return Err(format!("answered without `{wanted}` in its first {BODY_MAX} bytes"));
        }
    }
    Err(format!("answered without `{wanted}`"))
}

pub(super) fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
}

fn destination(url: &str) -> Result<Destination, String> {
    let uri: Uri = url.parse().map_err(|error| format!("`{url}` is not a URL: {error}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(format!("`{url}`: probes speak plain http only, not https")),
        _ => return Err(format!("`{url}` does not begin with http://")),
    }
    let authority = uri.authority().ok_or_else(|| format!("`{url}` names no host"))?;
    if authority.as_str().contains('@') {
        return Err(format!("`{url}` carries credentials, which probes do not send"));
    }
    // The crate takes a port that is none for an absent one, which would read as 80.
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => 80,
        Some(rest) => rest.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).unwrap_or(0),
        None => 0,
    };
    if port == 0 {
        return Err(format!("`{url}` has no valid port"));
    }
    let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
    Ok(Destination {
        address: format!("{}:{port}", authority.host()),
        host: authority.to_string(),
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_can_be_asked() {
        let to = destination("http://[::1]:8080/a?b=c").expect("a URL");
        assert_eq!((to.address.as_str(), to.path.as_str()), ("[::1]:8080", "/a?b=c"));
        let to = destination("http://example.org").expect("a URL");
        assert_eq!((to.address.as_str(), to.path.as_str()), ("example.org:80", "/"));
        for bad in ["https://x/", "ftp://x/", "/x", "http://", "http://u:p@x/", "http://x:99999/", "x y"]
        {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn templates() {
        assert_eq!(fill("http://h:{port}/{pid}", Some(80), 7), "http://h:80/7");
    }
}
