//! `dns` against dnsmasq, and against a server that answers nonsense.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;
use vervet::{
    config::ReadySource,
    experiment::{Check, DnsCheck, DnsQuestion, DnsRecord},
};

use crate::{
    harness::story,
    server::{Server, Watch, ask, good, group, miss, missing, play},
};

const PORT: u16 = 5300;
const WITHIN: Duration = Duration::from_millis(300);

fn dnsmasq(dir: &Path) -> Server {
    let hosts = dir.join("hosts");
    let (port, hosts) = (format!("--port={PORT}"), format!("--addn-hosts={}", hosts.display()));
    let command = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--local=/test/",
        "--local-ttl=0",
        "--srv-host=_shop._tcp.test,a.test,8001",
        "--srv-host=_shop._tcp.test,b.test,8002",
        "--txt-record=words.test,hello",
        &port,
        &hosts,
    ];
    let mut server = Server::start(dir, &command);
    server.listening(PORT);
    server
}

/// The addresses that `shop.test` has from now on.
fn hosts(dir: &Path, server: Option<&Server>, last: impl IntoIterator<Item = u8>) {
    let lines = last.into_iter().map(|last| format!("10.0.0.{last} shop.test\n"));
    let text: String = lines.chain(["fd00::1 six.test\n".to_owned()]).collect();
    fs::write(dir.join("hosts"), text).expect("written");
    if let Some(server) = server {
        server.signal(Signal::SIGHUP);
    }
}

fn question(name: &str, record: DnsRecord) -> DnsQuestion {
    let server = Some(SocketAddr::from(([127, 0, 0, 1], PORT)));
    DnsQuestion { name: name.to_owned(), server, record, within: WITHIN }
}

fn check(name: &str, record: DnsRecord, answer: &[&str], at_least: u32) -> Check {
    let answer = answer.iter().map(|text| (*text).to_owned()).collect();
    Check::Dns(DnsCheck { question: question(name, record), answer, at_least })
}

fn with_dnsmasq(name: &str, scene: impl FnOnce(&Path, Server) + Send) {
    story(name, |stage| match missing(&["dnsmasq", "setpriv"]) {
        Some(why) => eprintln!("SKIPPED: {name}: {why}"),
        None => {
            let dir = stage.dir.path();
            hosts(dir, None, [1, 2, 3]);
            scene(dir, dnsmasq(dir));
        }
    });
}

#[test]
fn a_name_is_judged_by_its_records_whatever_becomes_of_the_server() {
    with_dnsmasq("a_name_is_judged_by_its_records", |dir, mut server| {
        play(async {
            let shop = check("shop.test", DnsRecord::A, &["10.0.0.2"], 3);
            for check in [
                &shop,
                &check("SHOP.test.", DnsRecord::A, &[], 1),
                &check("six.test", DnsRecord::Aaaa, &["fd00:0::1"], 1),
                &check("_shop._tcp.test", DnsRecord::Srv, &["0 0 8001 a.test"], 2),
                &check("words.test", DnsRecord::Txt, &["hello"], 1),
            ] {
                assert_eq!(ask(check).await, Ok(()), "{check:?}");
            }
            miss(
                &check("shop.test", DnsRecord::A, &["10.0.0.9"], 1),
                "no A record 10.0.0.9, but 10.0.0.1",
            )
            .await;
            miss(&check("shop.test", DnsRecord::A, &[], 4), "has 3 A records, and at least 4").await;
            miss(&check("shop.test", DnsRecord::Aaaa, &[], 1), "has 0 AAAA records").await;
            miss(&check("gone.test", DnsRecord::A, &[], 1), "does not exist (NXDOMAIN)").await;
            miss(&check("elsewhere.example", DnsRecord::A, &[], 1), "refused to answer (REFUSED)").await;

            // More than a datagram holds: the rest is asked for over TCP.
            hosts(dir, Some(&server), 1..=80);
            good(&check("shop.test", DnsRecord::A, &["10.0.0.80"], 80)).await;

            server.hang();
            miss(&shop, "no answer within 300ms").await;
            server.go_on();
            good(&shop).await;
            server.stop();
            miss(&shop, "no answer: ").await;
            server.start_again();
            good(&shop).await;
        });
    });
}

#[test]
fn records_are_counted_as_instances_and_believed_only_as_many_as_can_be() {
    with_dnsmasq("records_are_counted_as_instances", |dir, mut server| {
        play(async {
            let source = ReadySource::Dns(question("shop.test", DnsRecord::A));
            let mut watch = Watch::start(&group(source));
            watch.ready(3, 4).await;
            hosts(dir, Some(&server), [1, 2, 3, 4]);
            watch.ready(4, 4).await;
            hosts(dir, Some(&server), 1..=5);
            watch.fails("counts 5 ready in g, and 4 are expected at most").await;
            hosts(dir, Some(&server), []);
            watch.fails("does not exist (NXDOMAIN)").await;
            hosts(dir, Some(&server), [1, 2]);
            watch.ready(2, 4).await;
            server.hang();
            watch.fails("no answer within 300ms").await;
            server.go_on();
            watch.ready(2, 4).await;
            server.stop();
            watch.fails("no answer: ").await;
            server.start_again();
            watch.ready(2, 4).await;
            let services = ReadySource::Dns(question("_shop._tcp.test", DnsRecord::Srv));
            Watch::start(&group(services)).ready(2, 4).await;
        });
    });
}

/// Answers each question with what `answer` makes of it.
fn server_that(answer: impl Fn(Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("address");
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for datagram in answer(buffer[..length].to_vec()) {
                let _ = socket.send_to(&datagram, from);
            }
        }
    });
    address
}

fn response(question: &[u8], flags: [u8; 2]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2..4].copy_from_slice(&flags);
    answer
}

#[test]
fn nonsense_is_no_answer() {
    story("nonsense_is_no_answer", |_| {
        play(async {
            let of = |server| {
                let question = DnsQuestion { server: Some(server), ..question("a.test", DnsRecord::A) };
                Check::Dns(DnsCheck { question, answer: Vec::new(), at_least: 1 })
            };
            let failing = server_that(|question| vec![response(&question, [0x81, 0x82])]);
            miss(&of(failing), "could not find out (SERVFAIL)").await;
            let odd = server_that(|question| vec![response(&question, [0x81, 0x84])]);
            miss(&of(odd), "the server answered").await;
            // To another question, and not even a message: both wait for the real one.
            let stray = server_that(|question| {
                let mut stray = response(&question, [0x81, 0x80]);
                stray[0] ^= 1;
                vec![stray, vec![1, 2, 3], Vec::new(), question]
            });
            miss(&of(stray), "no answer within 300ms").await;
            let cut = server_that(|question| vec![response(&question, [0x83, 0x80])]);
            miss(&of(cut), "cut short, and over TCP there is no answer").await;
            // The first datagram is lost.
            let lost = std::sync::atomic::AtomicBool::new(false);
            let once = server_that(move |question| {
                let again = lost.swap(true, std::sync::atomic::Ordering::Relaxed);
                if again { vec![response(&question, [0x81, 0x83])] } else { Vec::new() }
            });
            assert!(ask(&of(once)).await.expect_err("NXDOMAIN").contains("does not exist"));
        });
    });
}
