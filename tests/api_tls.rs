//! TLS: needed beyond loopback, never in the way of others, and with a client CA nobody gets in
//! without a certificate.

mod api_support;

use std::{path::Path, time::Duration};

use api_support::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vervet::{
    api::{Limits, ServeError, listen},
    config::TlsPolicy,
};

/// An authority, and what it signed.
struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { authority: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// Certificate and key, PEM.
    fn sign(&self, names: &[&str]) -> (String, String) {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn policy(&self, dir: &Path, client_ca: bool) -> TlsPolicy {
        let (cert, key) = self.sign(&["localhost", "127.0.0.1"]);
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsPolicy {
            cert: write("cert.pem", &cert),
            key: write("key.pem", &key),
            client_ca: client_ca.then(|| write("ca.pem", &self.authority.pem())),
        }
    }

    /// Trusts the authority; shows a certificate if it has one.
    fn client(&self, identity: Option<(String, String)>) -> reqwest::Client {
        crypto();
        let root = reqwest::Certificate::from_pem(self.authority.pem().as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder().tls_certs_only([root]).no_proxy();
        if let Some((certificate, key)) = identity {
            let pem = format!("{certificate}{key}");
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

fn serve_tls(pki: &Pki, client_ca: bool, limits: Limits) -> (Bench, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let tls = pki.policy(dir.path(), client_ca);
    (Bench::with(limits, |policy| policy.tls = Some(tls)), dir)
}

fn ask(client: &reqwest::Client, bench: &Bench) -> reqwest::RequestBuilder {
    let url = format!("https://localhost:{}/v1/host", bench.tcp.port());
    client.get(url).bearer_auth(OBSERVER)
}

#[test]
fn beyond_loopback_there_is_no_listening_without_tls() {
    for address in ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "[::ffff:10.1.2.3]:0"] {
        let refused = listen::tcp(address.parse().unwrap(), None);
        assert!(matches!(refused, Err(ServeError::TlsNeeded(_))), "{address}");
    }
    for address in ["127.0.0.1:0", "127.8.8.8:0"] {
        assert!(listen::tcp(address.parse().unwrap(), None).is_ok(), "{address}");
    }
}

#[test]
fn bad_tls_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = Pki::new().policy(dir.path(), true);
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing.pem");
    for (what, bad) in [
        ("certificate", TlsPolicy { cert: missing.clone(), ..good.clone() }),
        ("certificate", TlsPolicy { cert: empty.clone(), ..good.clone() }),
        ("key", TlsPolicy { key: empty.clone(), ..good.clone() }),
        ("client CA", TlsPolicy { client_ca: Some(empty), ..good.clone() }),
    ] {
        let error = listen::tcp("127.0.0.1:0".parse().unwrap(), Some(&bad)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("read the TLS {what} ")), "{error}");
    }
}

#[tokio::test]
async fn tls_still_wants_a_token() {
    let pki = Pki::new();
    let (bench, _dir) = serve_tls(&pki, false, Limits::default());
    let client = pki.client(None);
    assert_eq!(Answer::of(ask(&client, &bench)).await.status, 200);
    let url = format!("https://localhost:{}/v1/host", bench.tcp.port());
    Answer::of(client.get(url)).await.assert_problem(401, "token_missing");
    // Plain HTTP on the same port gets nowhere.
    assert!(remote(OWNER).get(bench.url("/v1/host")).send().await.is_err());
}

#[tokio::test]
async fn with_a_client_ca_nobody_gets_in_without_a_certificate() {
    let pki = Pki::new();
    let (bench, _dir) = serve_tls(&pki, true, Limits::default());
    assert!(ask(&pki.client(None), &bench).send().await.is_err(), "no certificate");
    let stranger = Pki::new().sign(&["ci"]);
    assert!(ask(&pki.client(Some(stranger)), &bench).send().await.is_err(), "another authority's");
    let known = pki.client(Some(pki.sign(&["ci"])));
    assert_eq!(Answer::of(ask(&known, &bench)).await.status, 200);
    let url = format!("https://localhost:{}/v1/host", bench.tcp.port());
    Answer::of(known.get(url)).await.assert_problem(401, "token_missing");
}

#[tokio::test]
async fn a_stalled_handshake_holds_nobody_up_and_is_given_up() {
    let pki = Pki::new();
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let (bench, _dir) = serve_tls(&pki, false, limits);
    let mut silent = TcpStream::connect(bench.tcp).await.unwrap();
    let mut halfway = TcpStream::connect(bench.tcp).await.unwrap();
    halfway.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    assert_eq!(Answer::of(ask(&pki.client(None), &bench)).await.status, 200);
    for stalled in [&mut silent, &mut halfway] {
        let end = timeout(PATIENCE, stalled.read(&mut [0; 64])).await.expect("it is closed");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
