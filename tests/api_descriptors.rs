//! The process runs out of file descriptors: the API goes on when there are some again.
//!
//! Alone in its binary: the limit is the whole process's.

mod api_support;

use std::time::{Duration, Instant};

use api_support::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

#[tokio::test]
async fn accepting_survives_the_end_of_descriptors() {
    let bench = Bench::start();
    let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, open + 40, hard).unwrap();
    // Client and server share the limit: this ends when neither can have one more.
    let mut crowd = Vec::new();
    let full = loop {
        match TcpStream::connect(bench.tcp).await {
            Ok(stream) => crowd.push(stream),
            Err(error) => break error,
        }
        assert!(crowd.len() < 1000, "the limit does not hold");
    };
    assert_eq!(full.raw_os_error(), Some(libc::EMFILE));
    // Room for a client, and for the server's end of it.
    crowd.drain(..4);
    let begin = Instant::now();
    let ask = async {
        let mut stream = UnixStream::connect(&bench.socket).await.unwrap();
        let request = "PUT /v1/halt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                       Content-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, ask).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    setrlimit(Resource::RLIMIT_NOFILE, before, hard).unwrap();
}
