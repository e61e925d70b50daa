//! From flags and files to a place, a token and trust: what a client is made of.
//!
//! Nothing here connects. Every error names the flag.

use std::{
    fs,
    path::{Path, PathBuf},
};

use reqwest::header;

use crate::cli::{
    args::{DEFAULT_SOCKET, Global},
    client::ClientError,
};

/// Where the agent is.
#[derive(Debug, Clone)]
pub enum Place {
    Socket(PathBuf),
    Url(reqwest::Url),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Url(url) => write!(f, "{}", url.as_str().trim_end_matches('/')),
        }
    }
}

/// Where the flags say that the agent is.
///
/// # Errors
/// When the address makes no sense.
pub fn place(global: &Global) -> Result<Place, ClientError> {
    let Some(host) = &global.host else {
        let path = global.socket.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        return Ok(Place::Socket(path));
    };
    let bad = |why: String| ClientError::Setup(format!("--host {host}: {why}"));
    let mut url: reqwest::Url =
        host.parse().map_err(|error| bad(format!("{error}; write it as https://name:7667")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("must begin with https:// (or http:// for this host)".to_owned()));
    }
    // What is joined to it is relative to the last slash.
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(Place::Url(url))
}

/// The token of a file, as a header.
///
/// # Errors
/// When it cannot be read or is none.
pub fn read_token(path: &Path) -> Result<header::HeaderValue, ClientError> {
    let bad = |why: String| ClientError::Setup(format!("--token-file {}: {why}", path.display()));
    let secret = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let secret = secret.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(bad("must hold one token and nothing else".to_owned()));
    }
    let mut value = header::HeaderValue::from_str(&format!("Bearer {secret}"))
        .map_err(|_| bad("holds characters that no token has".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Certificates to trust and to show.
///
/// # Errors
/// When a file cannot be read or holds none.
pub fn with_trust(
    mut builder: reqwest::ClientBuilder,
    global: &Global,
) -> Result<reqwest::ClientBuilder, ClientError> {
    let bad = |flag: &str, path: &Path, why: String| {
        ClientError::Setup(format!("{flag} {}: {why}", path.display()))
    };
    if let Some(path) = &global.ca {
        let pem = fs::read(path).map_err(|error| bad("--ca", path, error.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| bad("--ca", path, chain(&error)))?;
        if certificates.is_empty() {
            return Err(bad("--ca", path, "holds no certificate".to_owned()));
        }
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(path) = &global.cert {
        let pem = fs::read(path).map_err(|error| bad("--cert", path, error.to_string()))?;
        let identity =
            reqwest::Identity::from_pem(&pem).map_err(|error| bad("--cert", path, chain(&error)))?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

/// A token in clear text over a network is no secret any more.
///
/// # Errors
/// When it would be.
pub fn refuse_clear_text(url: &reqwest::Url) -> Result<(), ClientError> {
    let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback =
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if url.scheme() == "http" && !loopback {
        return Err(ClientError::Setup(format!(
            "--host {url}: will not send a token unencrypted to another host; use https://"
        )));
    }
    Ok(())
}

/// An error with its causes, those that only repeat the one before left out.
#[must_use]
pub fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    // The first one only says "error sending request for url (…)"; the causes say why.
    if parts.len() > 1 {
        parts.remove(0);
    }
    parts.join(": ")
}
