//! Opening the doors: the Unix socket, TCP, TLS. Who may pass is `access`'s business.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::Group,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::config::TlsPolicy;

use super::access::GROUP;

/// Length of `sun_path` in unix(7), less the terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// Why the API could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listen on {}: {why}", path.display())]
    Socket { path: PathBuf, why: String },
    #[error("listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("listen on {0} without TLS: any address beyond loopback needs `api.tls`")]
    TlsNeeded(SocketAddr),
    #[error("read the TLS {what} {}: {why}", path.display())]
    TlsFile { what: &'static str, path: PathBuf, why: String },
    #[error("set TLS up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("start the API's threads: {0}")]
    Threads(io::Error),
}

/// A Unix socket that disappears from the file system with its listener.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: another agent's socket at the same path is not ours to remove.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a Unix socket. A socket file that nobody answers on is replaced.
///
/// The file is open to the group `vervet` (mode 0660) where that exists, else to its owner alone.
///
/// # Errors
/// When the path is too long, in use, or not ours to write.
pub fn unix(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    let fail = |why: String| ServeError::Socket { path: path.to_owned(), why };
    let io_fail = |error: io::Error| fail(error.to_string());
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        return Err(fail(format!("the path has {length} bytes, a socket's may have {MAX_SOCKET_PATH}")));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io_fail)?;
    }
    remove_stale(path).map_err(&fail)?;
    let listener = UnixListener::bind(path).map_err(io_fail)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path).map_err(io_fail)? };
    let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw());
    // As a service the agent is of that group, and may be forbidden to give files away.
    let is_groups = |gid| fs::symlink_metadata(path).is_ok_and(|file| file.gid() == gid);
    let give = |gid| std::os::unix::fs::chown(path, None, Some(gid)).is_ok();
    let shared = group.is_some_and(|gid| is_groups(gid) || give(gid));
    let mode = if shared { 0o660 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_fail)?;
    listener.set_nonblocking(true).map_err(io_fail)?;
    Ok((listener, file))
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !kind.is_socket() {
        return Err("there is a file that is not a socket".to_owned());
    }
    match answers(path) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|error| error.to_string()),
        // Full, or still busy with the last caller: somebody is there.
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
            Err("another agent answers there".to_owned())
        }
        Err(errno) => Err(format!("cannot tell whether another agent answers there: {errno}")),
    }
}

/// Without waiting: a full backlog must not hang the start.
fn answers(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Listens on TCP; beyond loopback only with TLS.
///
/// # Errors
/// When the address needs TLS and has none, or is not to be had.
pub fn tcp(
    address: SocketAddr,
    tls: Option<&TlsPolicy>,
) -> Result<(TcpListener, Option<Arc<ServerConfig>>), ServeError> {
    if !address.ip().to_canonical().is_loopback() && tls.is_none() {
        return Err(ServeError::TlsNeeded(address));
    }
    let tls = tls.map(tls_config).transpose()?;
    let fail = |source| ServeError::Tcp { address, source };
    let listener = TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok((listener, tls))
}

fn tls_config(policy: &TlsPolicy) -> Result<Arc<ServerConfig>, ServeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("certificate", &policy.cert)?;
    let key = PrivateKeyDer::from_pem_file(&policy.key)
        .map_err(|error| tls_file("key", &policy.key, error.to_string()))?;
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &policy.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("client CA", path)? {
                roots.add(certificate)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| tls_file("client CA", path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(tls_file(what, path, "it holds no certificate".to_owned()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(tls_file(what, path, error.to_string())),
    }
}

fn tls_file(what: &'static str, path: &Path, why: String) -> ServeError {
    ServeError::TlsFile { what, path: path.to_owned(), why }
}

/// Raises the soft limit of open files to the hard one, and says what it is now.
pub fn raise_open_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    usize::try_from(if raised { hard } else { soft }).unwrap_or(usize::MAX)
}
