//! The shop that the experiments are about: a balancer before four instances, what they call, customers.
//!
//! All of it is in the story's own network, on the ports and addresses that the experiments name, so
//! that they need no change. It can have one bad habit, which the experiment about it then finds. All
//! but the instances is one process, this test binary started once more: who holds a socket is asked of
//! processes, and the threads of a story are in another network than its process.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    harness::{Stage, tool},
    instance::{self, CACHE, DATABASE, FOREVER, NAMES, OUTSIDE},
};

/// Ports of the instances.
pub const INSTANCES: [u16; 4] = [8001, 8002, 8003, 8004];
const BALANCER: u16 = 8080;
const FRONT_PAGE: u16 = 8000;
const INVENTORY: u16 = 9090;

/// How long the balancer waits for an instance, and leaves one alone that did not answer.
const PATIENCE: Duration = Duration::from_millis(600);
const EJECTED: Duration = Duration::from_secs(2);

/// What is wrong with the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Good,
    /// The balancer asks one instance, and when that fails it turns everybody away for a while.
    Brittle,
    /// Whoever calls somebody waits for the answer, however long it takes.
    Trusting,
    /// Nobody starts instances that ended.
    Unattended,
}

/// The habit of the process that is the shop.
const HABIT: &str = "VVSHOP_HABIT";

/// The process with everything but the instances, and the thread that keeps those.
pub struct Shop {
    child: Child,
    over: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Shop {
    /// Opens the shop without instances.
    pub fn open(habit: Habit) -> Self {
        tool("ip", &["addr", "add", "10.0.0.5/32", "dev", "lo"]);
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "shop::opens_when_asked", "--ignored", "--nocapture"]);
        command.env(HABIT, format!("{habit:?}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a shop");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let open = lines.map_while(Result::ok).any(|line| line.ends_with("open"));
        assert!(open, "the shop never opened");
        Self { child, over: Arc::default(), keeper: None }
    }

    /// Starts four instances, and keeps them running where somebody attends to that.
    pub fn staff(&mut self, stage: &Stage, habit: Habit) {
        let (marker, over) = (stage.marker("checkout"), self.over.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        // They end with the thread that starts them.
        self.keeper = Some(thread::spawn(move || {
            let start = |port| instance::start(&marker, port, habit == Habit::Trusting);
            let mut staff: Vec<Child> = INSTANCES.into_iter().map(start).collect();
            ready.send(()).expect("somebody waits");
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(50));
                for (child, port) in staff.iter_mut().zip(INSTANCES) {
                    let ended = child.try_wait().expect("asked").is_some();
                    if ended && habit != Habit::Unattended {
                        thread::sleep(Duration::from_millis(200));
                        *child = start(port);
                    }
                }
            }
            for mut child in staff {
                let _ = child.kill();
                let _ = child.wait();
            }
        }));
        is_ready.recv().expect("the instances listen");
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A customer is served.
pub fn serves() -> bool {
    ask(local(BALANCER), "/checkout", Duration::from_secs(1)).is_ok()
}

#[test]
#[ignore = "the shop, not a test"]
fn opens_when_asked() {
    let Ok(habit) = std::env::var(HABIT) else { return };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("set");
    for port in [DATABASE, CACHE, NAMES] {
        serve(SocketAddr::from((OUTSIDE, port)), echo);
    }
    let names = UdpSocket::bind(SocketAddr::from((OUTSIDE, NAMES))).expect("bound");
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = names.recv_from(&mut buffer) {
            let _ = names.send_to(&buffer[..length], from);
        }
    });
    serve(local(INVENTORY), |stream| drop(relay(stream, "200 OK")));
    let limit = if habit == "Trusting" { FOREVER } else { Duration::from_millis(400) };
    serve(local(FRONT_PAGE), move |mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let stock = ask(local(INVENTORY), "/", limit).is_ok();
        let page = response("200 OK", &format!("<html>in stock: {stock}</html>"));
        let _ = stream.write_all(page.as_bytes());
    });
    let balancer = Arc::new(Balancer::new(habit == "Brittle"));
    serve(local(BALANCER), move |stream| balancer.serve(stream));
    println!("open");
    loop {
        customers();
        thread::sleep(Duration::from_millis(150));
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn serve(address: SocketAddr, answer: impl Fn(TcpStream) + Send + Sync + 'static) {
    let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            let _ = stream.set_nodelay(true);
            thread::spawn(move || answer(stream));
        }
    });
}

/// Answers each byte, a little later: as long as that, a connection is in use.
fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        thread::sleep(Duration::from_millis(10));
        if stream.write_all(&byte).is_err() {
            return;
        }
    }
}

/// An answer to whatever is asked.
fn relay(mut stream: TcpStream, status: &str) -> io::Result<()> {
    if stream.read(&mut [0; 1024])? > 0 {
        stream.write_all(response(status, "ok").as_bytes())?;
    }
    Ok(())
}

pub fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// The first line of an answer that must be a 200.
fn ask(address: SocketAddr, path: &str, within: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(within))?;
    // In one piece: who answers reads but once.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if head.ends_with(b"200") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One request goes to the next instance that answers.
struct Balancer {
    brittle: bool,
    turn: AtomicUsize,
    ejected: Mutex<[Option<Instant>; INSTANCES.len()]>,
}

impl Balancer {
    fn new(brittle: bool) -> Self {
        Self { brittle, turn: AtomicUsize::new(0), ejected: Mutex::default() }
    }

    fn serve(&self, stream: TcpStream) {
        let status = if self.answered() { "200 OK" } else { "503 Service Unavailable" };
        let _ = relay(stream, status);
    }

    fn answered(&self) -> bool {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let order = (0..INSTANCES.len()).map(|at| (first + at) % INSTANCES.len());
        let out = |at: usize| {
            let until = self.ejected.lock().expect("no panic")[at];
            until.is_some_and(|until| Instant::now() < until)
        };
        if self.brittle && (0..INSTANCES.len()).any(out) {
            return false;
        }
        // Where all were silent, any may be asked again.
        let fit: Vec<usize> = order.clone().filter(|at| !out(*at)).collect();
        let fit = if fit.is_empty() { order.collect() } else { fit };
        for at in fit {
            if ask(local(INSTANCES[at]), "/checkout", PATIENCE).is_ok() {
                return true;
            }
            self.ejected.lock().expect("no panic")[at] = Some(Instant::now() + EJECTED);
            if self.brittle {
                return false;
            }
        }
        false
    }
}

/// Twelve at once, from an address of their own.
fn customers() {
    let from = SocketAddr::from(([127, 0, 0, 2], 0));
    let come = |_| {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
        bind(&socket, &from).ok()?;
        let mut stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
        connect(&stream, &local(BALANCER)).ok()?;
        stream.write_all(b"GET /checkout HTTP/1.1\r\nHost: shop\r\n\r\n").ok()?;
        Some(stream)
    };
    let all: Vec<TcpStream> = (0..12).filter_map(come).collect();
    for mut stream in all {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let _ = stream.read(&mut [0; 64]);
    }
}
