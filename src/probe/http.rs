//! `http`: an answer with the right status, and the right words in it.
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
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// The most that is read of a body in search of the wanted words, in bytes.
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

/// Asks for the URL: the status must be one of `status` (empty: any 2xx), and the first
/// [`BODY_MAX`] bytes of the body must contain `body`; all of it, connecting included, `within`.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn get(url: &str, status: &[u16], body: Option<&str>, within: Duration) -> Result<(), String> {
    let destination = destination(url)?;
    match timeout(within, exchange(&destination, status, body)).await {
        Ok(result) => result.map_err(|error| format!("{url} {error}")),
        Err(_) => Err(format!("{url} did not answer within {within:?}")),
    }
}

async fn exchange(to: &Destination, status: &[u16], body: Option<&str>) -> Result<(), String> {
    let stream = TcpStream::connect(&to.address)
        .await
        .map_err(|error| format!("does not take a connection: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| format!("does not speak HTTP: {error}"))?;
    let request = Request::get(&to.path)
        .header(HOST, &to.host)
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("vervet/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| format!("cannot be asked: {error}"))?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})"));
            format!("gave no HTTP answer: {error}{}", cause.unwrap_or_default())
        })?;
        judge(answer.status().as_u16(), status)?;
        match body {
            Some(wanted) => search(answer.into_body(), wanted).await,
            None => Ok(()),
        }
    };
    // The connection has no task of its own: dropped with this future, it is closed at once.
    tokio::select! {
        biased;
        result = ask => result,
        () = async { let _ = connection.await; std::future::pending().await } => unreachable!("pending never ends"),
    }
}

fn judge(got: u16, wanted: &[u16]) -> Result<(), String> {
    let right = if wanted.is_empty() { (200..300).contains(&got) } else { wanted.contains(&got) };
    if right {
        return Ok(());
    }
    let wanted: Vec<String> = wanted.iter().map(u16::to_string).collect();
    let wanted = if wanted.is_empty() { "2xx".to_owned() } else { wanted.join(" or ") };
    Err(format!("answered {got}, not {wanted}"))
}

async fn search(mut body: Incoming, wanted: &str) -> Result<(), String> {
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

fn contains(text: &[u8], wanted: &[u8]) -> bool {
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
