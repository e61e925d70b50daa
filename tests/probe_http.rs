//! Probes against servers that answer, refuse, hang, dawdle and talk nonsense.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use vervet::probe::{http, tcp};

const WITHIN: Duration = Duration::from_millis(300);

/// A server that does `serve` with each connection after the request's head was read.
async fn server<F, S>(serve: S) -> String
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream) -> F + Send + Copy + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                serve(stream).await;
            });
        }
    });
    format!("http://{address}/")
}

async fn say(mut stream: TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes()).await;
}

/// Asks, and checks that the answer came within the time (and a scheduler's breath).
async fn get(url: &str, status: &[u16], body: Option<&str>) -> Result<(), String> {
    let began = Instant::now();
    let result = http::get(url, status, body, WITHIN).await;
    assert!(began.elapsed() < WITHIN * 4, "took {:?}", began.elapsed());
    result
}

#[tokio::test]
async fn the_status_and_the_words_are_judged() {
    let url =
        server(|stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world")).await;
    assert_eq!(get(&url, &[200], None).await, Ok(()));
    assert_eq!(get(&url, &[], None).await, Ok(()));
    assert_eq!(get(&url, &[204, 200], Some("lo wo")).await, Ok(()));
    let missing = get(&url, &[200], Some("goodbye")).await.expect_err("missing");
    assert!(missing.contains("goodbye"), "{missing}");
    let wrong = get(&url, &[204], None).await.expect_err("wrong");
    assert!(wrong.contains("200") && wrong.contains("204"), "{wrong}");
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let url =
        server(|stream| say(stream, "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"))
            .await;
    assert_eq!(get(&url, &[302], None).await, Ok(()));
    assert!(get(&url, &[200], None).await.is_err());
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address");
    assert!(
        get(&format!("http://{free}/"), &[200], None).await.expect_err("refused").contains("connection")
    );
    assert!(tcp::connect(&free.to_string(), WITHIN).await.is_err());
}

#[tokio::test]
async fn a_server_that_hangs_before_or_in_its_answer_is_late() {
    let silent = server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = get(&silent, &[200], None).await.expect_err("late");
    assert!(error.contains("within 300ms"), "{error}");
    let halfway = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhel").await;
        std::future::pending::<()>().await;
    })
    .await;
    assert!(get(&halfway, &[200], Some("hello")).await.is_err());
}

#[tokio::test]
async fn a_server_that_drips_its_answer_is_late() {
    let url = server(|mut stream| async move {
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    })
    .await;
    assert!(get(&url, &[200], None).await.is_err());
}

#[tokio::test]
async fn a_listener_that_never_accepts_answers_tcp_only() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("address").to_string();
    assert_eq!(tcp::connect(&address, WITHIN).await, Ok(()));
    assert!(get(&format!("http://{address}/"), &[200], None).await.is_err());
}

#[tokio::test]
async fn nonsense_and_floods_are_errors() {
    let nonsense = server(|stream| say(stream, "SSH-2.0-OpenSSH\r\n\r\n")).await;
    assert!(get(&nonsense, &[200], None).await.is_err());
    let closed = server(|stream| async move { drop(stream) }).await;
    assert!(get(&closed, &[200], None).await.is_err());
    let headers = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"X-Long: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").await.is_ok() {}
    })
    .await;
    let error = get(&headers, &[200], None).await.expect_err("bounded");
    assert!(!error.contains("within"), "ended by its size, not by the time: {error}");
    let endless = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
    })
    .await;
    let error = get(&endless, &[200], Some("needle")).await.expect_err("bounded");
    assert!(error.contains("first 65536 bytes"), "{error}");
}

#[tokio::test]
async fn words_across_the_seam_of_two_pieces_are_found() {
    let url = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello").await;
        let _ = stream.flush().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _ = stream.write_all(b" world").await;
    })
    .await;
    assert_eq!(get(&url, &[200], Some("lo wo")).await, Ok(()));
}
