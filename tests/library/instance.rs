//! An instance of the shop's checkout: this test binary, started once more.
//!
//! For each request it looks a name up, asks a cache and a database, as services do. In good habits it
//! gives each of them a limit and does with what it knows; in bad ones it waits, asks twenty times, and
//! fails with whom it asks.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::shop::response;

const PORT: &str = "VVSHOP_PORT";
const TRUSTING: &str = "VVSHOP_TRUSTING";

/// Where the world outside is: an address of the namespace's loopback.
pub const OUTSIDE: [u8; 4] = [10, 0, 0, 5];
pub const DATABASE: u16 = 5432;
pub const CACHE: u16 = 6379;
pub const NAMES: u16 = 53;

/// How long those with bad habits wait.
pub const FOREVER: Duration = Duration::from_secs(4);

/// The command line of an instance, and its environment, for whoever starts it.
pub fn command(marker: &str, port: u16, trusting: bool) -> Vec<String> {
    let mut words = vec!["env".to_owned(), format!("{PORT}={port}")];
    if trusting {
        words.push(format!("{TRUSTING}=1"));
    }
    words.push(std::env::current_exe().expect("this program").display().to_string());
    let rest =
        ["--exact", "instance::serves_when_asked", "--ignored", "--nocapture", "--test-threads=1"];
    words.extend(rest.map(str::to_owned));
    // A filter that matches no test: it is there to be found by.
    words.extend(["--skip".to_owned(), marker.to_owned()]);
    words
}

/// Starts one and waits until it listens. It ends with the thread that starts it.
pub fn start(marker: &str, port: u16, trusting: bool) -> Child {
    let words = command(marker, port, trusting);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("an instance");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let listens = lines.map_while(Result::ok).any(|line| line.ends_with("listening"));
    assert!(listens, "the instance on {port} never listened");
    child
}

#[test]
#[ignore = "an instance of the shop, not a test"]
fn serves_when_asked() {
    let Ok(port) = std::env::var(PORT) else { return };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("set");
    let trusting = std::env::var_os(TRUSTING).is_some();
    std::thread::spawn(listen_to_changes);
    let listener = TcpListener::bind(("127.0.0.1", port.parse().expect("a port"))).expect("bound");
    println!("listening");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream, trusting));
    }
}

/// A connection to the database that stays open, and is made anew when it is cut.
fn listen_to_changes() {
    loop {
        if let Ok(mut stream) = TcpStream::connect_timeout(&outside(DATABASE), FOREVER) {
            let _ = stream.read(&mut [0; 16]);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn answer(mut stream: TcpStream, trusting: bool) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    // Requests here are small and come whole.
    let Ok(length) = stream.read(&mut buffer) else { return };
    let asked = String::from_utf8_lossy(&buffer[..length]).starts_with("GET /checkout");
    let well = !asked || checkout(trusting);
    let status = if well { "200 OK" } else { "500 Internal Server Error" };
    let _ = stream.write_all(response(status, "ok").as_bytes());
}

fn checkout(trusting: bool) -> bool {
    let limit = |ms| if trusting { FOREVER } else { Duration::from_millis(ms) };
    let queries = if trusting { 20 } else { 1 };
    // What does not come in time was known a moment ago.
    let _ = look_up(limit(50));
    let _ = ask(CACHE, 1, limit(50));
    ask(DATABASE, queries, limit(300)).is_ok() || !trusting
}

fn look_up(within: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(within))?;
    socket.send_to(b"database", outside(NAMES))?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// Round trips on a new connection, one after the other.
fn ask(port: u16, times: u32, within: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&outside(port), within)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(within))?;
    for _ in 0..times {
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
    }
    Ok(())
}

fn outside(port: u16) -> SocketAddr {
    (OUTSIDE, port).into()
}
