//! The service that the demo plays with: workers that answer HTTP, and a load balancer before them.
//!
//! As small as it can be while being real: four processes, each with a port of its own, and a front
//! that tries the next worker when one does not answer.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::cli::{Failure, Outcome, exit::Exit};

/// The largest request head, in bytes.
const HEAD: usize = 4096;
/// How long a client may keep a connection open without asking.
const IDLE: Duration = Duration::from_secs(30);
/// How long the front waits for one worker.
const PATIENCE: Duration = Duration::from_millis(500);

/// One instance: answers every request with its port.
///
/// # Errors
/// When the port is taken.
pub fn worker(port: u16) -> Outcome {
    // For whoever lists processes: the name tells the instance.
    let name = std::ffi::CString::new(format!("checkout-{}", port % 10)).unwrap_or_default();
    let _ = nix::sys::prctl::set_name(&name);
    serve(port, move |mut client| async move {
        if read_head(&mut client).await.is_ok() {
            let body = format!("checkout, by the worker on port {port}\n");
            let _ = client.write_all(response("200 OK", &body).as_bytes()).await;
        }
    })
}

/// The load balancer: each request goes to the next worker that answers.
///
/// # Errors
/// When the port is taken.
pub fn front(port: u16, workers: Vec<u16>) -> Outcome {
    let _ = nix::sys::prctl::set_name(c"front");
    let (workers, turn) = (Arc::new(workers), Arc::new(AtomicUsize::new(0)));
    serve(port, move |mut client| {
        let (workers, turn) = (workers.clone(), turn.clone());
        async move {
            let Ok(head) = read_head(&mut client).await else { return };
            let first = turn.fetch_add(1, Ordering::Relaxed);
            for at in 0..workers.len() {
                let worker = workers[(first + at) % workers.len()];
                if let Ok(Ok(answer)) = timeout(PATIENCE, ask(worker, &head)).await {
                    let _ = client.write_all(&answer).await;
                    return;
                }
            }
            let body = "no worker answers\n";
            let _ = client.write_all(response("503 Service Unavailable", body).as_bytes()).await;
        }
    })
}

fn serve<F, Fut>(port: u16, handle: F) -> Outcome
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let failed = |error: io::Error| Failure::failed(format!("failed to serve on port {port}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
        loop {
            match listener.accept().await {
                Ok((client, _)) => drop(tokio::spawn(handle(client))),
                // Out of descriptors, or a client that is gone already: both pass.
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok(Exit::Passed)
    })
}

async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = timeout(IDLE, client.read(&mut buffer)).await??;
        if read == 0 || head.len() > HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..read]);
    }
    Ok(head)
}

/// The whole answer of a worker; it closes when it has answered.
async fn ask(worker: u16, head: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, worker)).await?;
    stream.write_all(head).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}
