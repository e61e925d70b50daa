//! The API's own threads: accepting, timing out, shedding, stopping.
//!
//! Nothing here shares a thread with the event loop, so no client can hold up a decision, and a
//! busy loop does not keep a client from being told so.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, mpsc::SyncSender},
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{config::ApiPolicy, document::Library, runner::Handle};

use super::{
    access::{Access, Peer, local_caller},
    app::App,
    limits::Limits,
    listen::{self, ServeError, SocketFile},
    pool::{Admission, Pool},
    service::{Front, Service},
    stream::Polite,
};

/// A serving API. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    tcp: Option<SocketAddr>,
}

/// Opens the doors and serves, on threads of its own. When this returns, clients can connect.
///
/// # Errors
/// When a listener cannot be opened.
pub fn serve(
    policy: &ApiPolicy,
    handle: Handle,
    library: Library,
    limits: Limits,
) -> Result<Server, ServeError> {
    let files = listen::raise_open_files();
    // Half of the descriptors belong to faults, probes and the journal.
    let limits = Limits { connections: limits.connections.min(files / 4).max(8), ..limits };
    let unix = listen::unix(&policy.socket)?;
    let tcp = policy.listen.map(|address| listen::tcp(address, policy.tls.as_ref())).transpose()?;
    let address = tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
    let (stop, stopped) = watch::channel(false);
    let app = Arc::new(App::new(handle, library, Access::new(policy), limits, stopped));
    let front = Front { app: app.clone(), router: super::routes::router(app.clone()) };
    let (opened, open) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("vervet-api".to_owned())
        .spawn(move || run(unix, tcp, front, &opened))
        .map_err(ServeError::Threads)?;
    match open.recv() {
        Ok(Ok(())) => Ok(Server { app, stop, thread: Some(thread), tcp: address }),
        Ok(Err(error)) => Err(ServeError::Threads(error)),
        Err(_) => Err(ServeError::Threads(io::Error::other("the API's thread ended at once"))),
    }
}

/// The life of the API's first thread: says whether it could begin, then serves to the end.
fn run(unix: UnixDoor, tcp: Option<TcpDoor>, front: Front, opened: &SyncSender<io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("vervet-api")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(opened.send(Err(error))),
    };
    let listeners = {
        let _entered = runtime.enter();
        Listeners::new(unix, tcp)
    };
    match listeners {
        Ok(listeners) => {
            let _ = opened.send(Ok(()));
            runtime.block_on(listeners.run(front));
        }
        Err(error) => drop(opened.send(Err(error))),
    }
    runtime.shutdown_timeout(Duration::from_millis(100));
}

impl Server {
    /// The TCP address, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Tokens, host names and the library of a reloaded policy. Listeners stay as they are.
    pub fn reload(&self, policy: &ApiPolicy, library: Library) {
        *self.app.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Access::new(policy));
        *self.app.library.write().unwrap_or_else(PoisonError::into_inner) = library;
    }

    /// Stops accepting, lets open requests end for a moment, and returns when nothing serves any more.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of a thread that has nothing left to do changes nothing.
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

struct Listeners {
    unix: UnixListener,
    _file: SocketFile,
    tcp: Option<(TcpListener, Option<TlsAcceptor>)>,
}

type UnixDoor = (std::os::unix::net::UnixListener, SocketFile);
type TcpDoor = (std::net::TcpListener, Option<Arc<ServerConfig>>);

impl Listeners {
    fn new((unix, file): UnixDoor, tcp: Option<TcpDoor>) -> io::Result<Self> {
        let tcp = tcp.map(|(listener, tls)| {
            io::Result::Ok((TcpListener::from_std(listener)?, tls.map(TlsAcceptor::from)))
        });
        let tcp = tcp.transpose()?;
        Ok(Self { unix: UnixListener::from_std(unix)?, _file: file, tcp })
    }

    /// Serves until told to stop, and until the connections have ended or had their time.
    async fn run(self, front: Front) {
        let (open, mut ended) = mpsc::channel::<()>(1);
        let counting = tokio::spawn(super::metrics::count_verdicts(front.app.clone()));
        let unix = accept_unix(&self.unix, &front, &open);
        match &self.tcp {
            None => unix.await,
            Some((listener, tls)) => {
                tokio::join!(unix, accept_tcp(listener, tls.as_ref(), &front, &open));
            }
        }
        counting.abort();
        drop(open);
        // Nobody sends: it ends when the last connection drops its end.
        let _ = timeout(front.app.limits.stop, ended.recv()).await;
    }
}

async fn accept_unix(listener: &UnixListener, front: &Front, open: &mpsc::Sender<()>) {
    let pool = Pool::new(front.app.limits.connections);
    while let Some(stream) = next(&front.app, &pool, || listener.accept()).await {
        let Some(admission) = pool.admit() else { continue };
        let (front, open) = (front.clone(), open.clone());
        tokio::spawn(async move {
            let peer = Peer::Local(peer_of(&stream).await);
            converse(front, stream, peer, &admission).await;
            drop(open);
        });
    }
}

async fn accept_tcp(
    listener: &TcpListener,
    tls: Option<&TlsAcceptor>,
    front: &Front,
    open: &mpsc::Sender<()>,
) {
    let pool = Pool::new(front.app.limits.connections);
    while let Some(stream) = next(&front.app, &pool, || listener.accept()).await {
        let Some(admission) = pool.admit() else { continue };
        let (front, tls, open) = (front.clone(), tls.cloned(), open.clone());
        tokio::spawn(async move {
            greet(front, stream, tls, &admission).await;
            drop(open);
        });
    }
}

/// The next connection; `None` when the API stops.
///
/// When descriptors run out the loop neither ends nor spins: it makes room and tries again.
async fn next<S, A, F>(app: &App, pool: &Pool, mut accept: impl FnMut() -> F) -> Option<S>
where
    F: Future<Output = io::Result<(S, A)>>,
{
    let mut stop = app.stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return None,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) if aborted(&error) => {}
            Err(error) => {
                tracing::warn!("failed to accept a connection: {error}");
                pool.shed(8);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// The client went away before it was accepted, accept(2).
fn aborted(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn peer_of(stream: &UnixStream) -> Result<super::access::Caller, String> {
    let Ok(credentials) = stream.peer_cred() else { return Err("this peer".to_owned()) };
    let (uid, gid) = (credentials.uid(), credentials.gid());
    // Looking users up reads files, or asks a name service.
    let caller = tokio::task::spawn_blocking(move || local_caller(uid, gid)).await;
    caller.unwrap_or_else(|_| Err(uid.to_string()))
}

/// The handshake, off the accept loop, then the conversation.
async fn greet(front: Front, stream: TcpStream, tls: Option<TlsAcceptor>, admission: &Admission) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let peer = Peer::Remote { local };
    let Some(tls) = tls else { return converse(front, stream, peer, admission).await };
    let handshake = timeout(front.app.limits.handshake, tls.accept(stream));
    let handshake = tokio::select! {
        biased;
        () = admission.place.shed() => return,
        handshake = handshake => handshake,
    };
    match handshake {
        Ok(Ok(stream)) => converse(front, stream, peer, admission).await,
        Ok(Err(error)) => tracing::debug!("a TLS handshake failed: {error}"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// HTTP/1.1 on one connection, until it ends, is shed, or the API stops.
async fn converse<S>(front: Front, stream: S, peer: Peer, admission: &Admission)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = front.app.limits;
    let mut stop = front.app.stop.clone();
    let service = Service::new(front, peer, admission.place.clone());
    let stream = TokioIo::new(Polite::new(stream, &limits));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(ended),
        () = admission.place.shed() => return tracing::debug!("an idle connection was shed"),
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    log_end(connection.await);
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}
