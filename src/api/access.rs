//! Who is calling, and what they may do.
//!
//! On the Unix socket the kernel says who it is: root and the agent's own user are owners, members
//! of the group `vervet` are operators, nobody else gets in. Over TCP it is always a bearer token,
//! whatever TLS said about the client, and the Host header must name this host, so that a page in
//! a browser cannot be rebound to it. Nothing here knows a route.

use std::{
    ffi::CString,
    net::{IpAddr, SocketAddr},
};

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::config::{ApiPolicy, Role, TokenPolicy};

use super::error::Problem;

/// The system group whose members are operators.
pub const GROUP: &str = "vervet";

/// Somebody who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For the record: `socket:root`, `token:ci`
    pub name: String,
    pub role: Role,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Over the Unix socket, known by the kernel; the error says who it is.
    Local(Result<Caller, String>),
    /// Over TCP, at this address of ours.
    Remote { local: SocketAddr },
}

/// What is checked of every request over TCP. Replaced as a whole when the policy is reloaded.
#[derive(Debug, Clone, Default)]
pub struct Access {
    tokens: Vec<TokenPolicy>,
    hosts: Vec<String>,
}

impl Access {
    #[must_use]
    pub fn new(policy: &ApiPolicy) -> Self {
        Self { tokens: policy.tokens.clone(), hosts: policy.hosts.clone() }
    }

    /// Who sends this request.
    ///
    /// # Errors
    /// 401 without a valid token over TCP, 403 for a local user who may not call.
    pub fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Problem> {
        match peer {
            Peer::Local(Ok(caller)) => Ok(caller.clone()),
            Peer::Local(Err(user)) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "peer_not_allowed",
                format!("{user} is neither root, nor the agent's user, nor in the group {GROUP}"),
            )),
            Peer::Remote { .. } => self.by_token(headers),
        }
    }

    fn by_token(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let secret = match (given.next(), given.next()) {
            (None, _) => return Err(unauthorized("token_missing", "a bearer token is needed over TCP")),
            (Some(one), None) => bearer(one),
            (Some(_), Some(_)) => None,
        };
        let Some(secret) = secret else {
            return Err(unauthorized("token_invalid", "the Authorization header is not `Bearer TOKEN`"));
        };
        match find(&self.tokens, secret) {
            Some(token) => Ok(Caller { name: format!("token:{}", token.name), role: token.role }),
            None => Err(unauthorized("token_invalid", "no such token")),
        }
    }

    /// A browser sends the name that it believes in: it must be one of ours.
    ///
    /// # Errors
    /// 400 without exactly one valid Host, 421 for a name that is not ours.
    pub fn check_host(&self, peer: &Peer, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let Peer::Remote { local } = peer else { return Ok(()) };
        let mut given = headers.get_all(header::HOST).iter();
        let (host, more) = (given.next(), given.next());
        let host = host.filter(|_| more.is_none());
        let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let Some(host) = host else {
            let detail = "exactly one valid Host header is needed";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "host_missing", detail));
        };
        for name in [Some(host.host()), uri.host()].into_iter().flatten() {
            if !self.is_ours(name, local.ip()) {
                let detail =
                    format!("{name} is not a name of this agent; list it in `api.hosts` if it is");
                return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", detail)
                    .with_numbers(json!({ "host": name })));
            }
        }
        Ok(())
    }

    fn is_ours(&self, name: &str, address: IpAddr) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok_and(|given| given.to_canonical() == address.to_canonical())
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(bare))
    }
}

/// Whether the caller may do what needs `role`.
///
/// # Errors
/// 403, naming the role.
pub fn require(caller: &Caller, role: Role) -> Result<(), Problem> {
    if caller.role >= role {
        return Ok(());
    }
    let (needed, has) = (role_name(role), role_name(caller.role));
    let detail = format!("this needs the role {needed}; {} is {has}", caller.name);
    Err(Problem::new(StatusCode::FORBIDDEN, "role_too_low", detail)
        .with_numbers(json!({ "needed": needed, "role": has })))
}

/// The caller behind a user id of the kernel. Looks users and groups up: it may block.
///
/// # Errors
/// The user's name, if they may not call.
pub fn local_caller(uid: u32, gid: u32) -> Result<Caller, String> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone());
    let owner = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    let role = match owner {
        true => Role::Owner,
        false if in_group(user.as_ref(), gid) => Role::Operator,
        false => return Err(name),
    };
    Ok(Caller { name: format!("socket:{name}"), role })
}

fn in_group(user: Option<&User>, gid: u32) -> bool {
    let Ok(Some(group)) = Group::from_name(GROUP) else { return false };
    if group.gid.as_raw() == gid {
        return true;
    }
    let Some(user) = user else { return false };
    let Ok(name) = CString::new(user.name.as_str()) else { return false };
    getgrouplist(&name, Gid::from_raw(gid)).is_ok_and(|groups| groups.contains(&group.gid))
}

/// Compares with every token, in time that does not tell which bytes are right.
fn find<'a>(tokens: &'a [TokenPolicy], secret: &str) -> Option<&'a TokenPolicy> {
    let digest: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    let mut found = u32::MAX;
    for (at, token) in (0u32..).zip(tokens) {
        found.conditional_assign(&at, digest.ct_eq(&token.sha256));
    }
    tokens.get(usize::try_from(found).ok()?)
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim_matches(' '))
}

fn unauthorized(reason: &str, detail: &str) -> Problem {
    let challenge = match reason {
        "token_invalid" => "Bearer realm=\"vervet\", error=\"invalid_token\"",
        _ => "Bearer realm=\"vervet\"",
    };
    Problem::new(StatusCode::UNAUTHORIZED, reason, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Observer => "observer",
        Role::Operator => "operator",
        Role::Owner => "owner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_are_found() {
        let token = |name: &str, secret: &str| TokenPolicy {
            name: name.to_owned(),
            role: Role::Observer,
            sha256: Sha256::digest(secret).into(),
        };
        let tokens = [token("a", "one"), token("b", "two")];
        assert_eq!(find(&tokens, "two").unwrap().name, "b");
        assert_eq!(find(&tokens, "one").unwrap().name, "a");
        for wrong in ["", "on", "ones", "ONE"] {
            assert_eq!(find(&tokens, wrong), None);
        }
        assert_eq!(find(&[], "one"), None);
    }

    #[test]
    fn names_that_are_not_ours_are_misdirected() {
        let access = Access { tokens: vec![], hosts: vec!["chaos.example".to_owned()] };
        let peer = Peer::Remote { local: "127.0.0.1:7667".parse().unwrap() };
        let check = |host: &str, uri: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            access.check_host(&peer, &uri.parse().unwrap(), &headers)
        };
        for good in ["127.0.0.1", "127.0.0.1:7667", "localhost:1", "LOCALHOST", "chaos.example:443"] {
            assert!(check(good, "/").is_ok(), "{good}");
        }
        for bad in ["evil.example", "127.0.0.2", "localhost.evil.example", "[::1]", "a@localhost x"] {
            assert!(check(bad, "/").is_err(), "{bad}");
        }
        assert!(check("localhost", "http://evil.example/").is_err());
    }
}
