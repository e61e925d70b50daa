//! Probes against servers that answer, refuse, hang, dawdle and talk nonsense.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use vervet::{
    experiment::{Bounds, HttpCheck, JsonExpect},
    probe::{answer, tcp},
};

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
    let check = HttpCheck {
        status: status.to_vec(),
        body: body.map(str::to_owned),
        ..HttpCheck::new(url, WITHIN)
    };
    ask(&check).await
}

async fn ask(check: &HttpCheck) -> Result<(), String> {
    let began = Instant::now();
    let result = answer::ask(check).await;
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

/// Says what it was asked for, in a header and in JSON.
async fn mirror() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a byte"));
            }
            let head = String::from_utf8(head).expect("text");
            let hosts = head.lines().filter_map(|line| line.strip_prefix("host: ")).collect::<Vec<_>>();
            let body = format!(
                "{{\"hosts\": {hosts:?}, \"replicas\": {{\"ready\": 3, \"total\": 4.0}}, \"up\": true, \
                 \"a/b\": {{\"m~n\": \"x\"}}, \"huge\": 5000000000}}"
            );
            let answer = format!(
                "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nVia: a\r\nvia: b\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            say(stream, &answer).await;
        }
    });
    format!("http://{address}/")
}

fn expect(json: &[(&str, JsonExpect)], url: &str) -> HttpCheck {
    let json = json.iter().map(|(pointer, wanted)| ((*pointer).to_owned(), wanted.clone())).collect();
    HttpCheck { json, ..HttpCheck::new(url, WITHIN) }
}

#[tokio::test]
async fn headers_are_sent_in_the_place_of_our_own() {
    let url = mirror().await;
    let mut check = expect(&[("/hosts/0", JsonExpect::Is("shop.test".into()))], &url);
    assert!(ask(&check).await.expect_err("its own address").contains("not \"shop.test\""));
    check.headers = [("HOST".to_owned(), "shop.test".to_owned())].into();
    assert_eq!(ask(&check).await, Ok(()));
    check.json = [("/hosts/1".to_owned(), JsonExpect::Is("shop.test".into()))].into();
    assert!(ask(&check).await.expect_err("only one").contains("without anything"), "sent once");
}

#[tokio::test]
async fn headers_of_the_answer_are_judged() {
    let url = mirror().await;
    let with = |name: &str, value: &str| HttpCheck {
        answer: [(name.to_owned(), value.to_owned())].into(),
        ..HttpCheck::new(&url, WITHIN)
    };
    assert_eq!(ask(&with("cache-control", "no-store")).await, Ok(()));
    assert_eq!(ask(&with("Via", "b")).await, Ok(()), "one of several");
    let wrong = ask(&with("Cache-Control", "private")).await.expect_err("wrong");
    assert!(wrong.ends_with("answered with `Cache-Control: no-store`, not `private`"), "{wrong}");
    let missing = ask(&with("X-Ready", "yes")).await.expect_err("missing");
    assert!(missing.ends_with("answered without the header `X-Ready`"), "{missing}");
}

#[tokio::test]
async fn json_pointers_find_what_is_expected_or_it_is_a_miss() {
    let url = mirror().await;
    let is = |value: serde_json::Value| JsonExpect::Is(value);
    let within = |at_least, at_most| JsonExpect::Within(Bounds { at_least, at_most });
    for (pointer, wanted) in [
        ("/replicas/ready", is(3.into())),
        ("/replicas/ready", is(3.0.into())),
        ("/replicas/total", is(4.into())),
        ("/up", is(true.into())),
        ("/a~1b/m~0n", is("x".into())),
        ("/replicas/ready", within(Some(3.0), Some(3.0))),
    ] {
        assert_eq!(ask(&expect(&[(pointer, wanted)], &url)).await, Ok(()), "{pointer}");
    }
    for (pointer, wanted, said) in [
        ("/replicas/ready", is(4.into()), "3, not 4"),
        ("/replicas/ready", is("3".into()), "3, not \"3\""),
        ("/up", is("true".into()), "true, not"),
        ("/replicas", is(3.into()), "an object, not 3"),
        ("/replicas/gone", is(3.into()), "without anything at `/replicas/gone`"),
        ("/replicas/ready", within(Some(4.0), None), "3, and at least 4"),
        ("/up", within(Some(0.0), None), "true, not a number"),
    ] {
        let error = ask(&expect(&[(pointer, wanted)], &url)).await.expect_err("a miss");
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_or_too_long_is_a_miss() {
    let wanted = JsonExpect::Is(true.into());
    let text =
        server(|stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"a\":true")).await;
    let error = ask(&expect(&[("/a", wanted.clone())], &text)).await.expect_err("cut");
    assert!(error.contains("no JSON document"), "{error}");
    let endless = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n[").await;
        while stream.write_all(&[b' '; 8192]).await.is_ok() {}
    })
    .await;
    let error = ask(&expect(&[("/a", wanted)], &endless)).await.expect_err("too long");
    assert!(error.contains("more than 65536 bytes"), "{error}");
}

#[tokio::test]
async fn one_answer_counts_for_a_group() {
    let url = mirror().await;
    let check = HttpCheck::new(&url, WITHIN);
    let count = answer::count(&check, "/replicas/ready", None).await.expect("a count");
    assert_eq!((count.ready, count.total), (3, None));
    for (ready, total, said) in [
        ("/replicas/total", None, "4.0, not a number of instances"),
        ("/huge", None, "5000000000, not a number"),
        ("/nowhere", None, "without anything at `/nowhere`"),
        ("/up", None, "true, not a number"),
        ("/replicas/ready", Some("/nowhere"), "without anything"),
    ] {
        let error = answer::count(&check, ready, total).await.expect_err("no count");
        assert!(error.contains(said), "{error}");
    }
    let lying =
        server(|stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"r\":5,\"t\":4}\n"))
            .await;
    let error =
        answer::count(&HttpCheck::new(&lying, WITHIN), "/r", Some("/t")).await.expect_err("5 of 4");
    assert!(error.ends_with("counts 5 ready of 4"), "{error}");
}
