//! An instance of the service that is hurt: this test binary, started once more.
//!
//! Answers every request on its port with 200. It may be told to live through SIGTERM.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

const PORT: &str = "VVSTORY_PORT";
const STUBBORN: &str = "VVSTORY_STUBBORN";

/// A worker, killed and reaped when it is dropped.
#[derive(Debug)]
pub struct Worker {
    pub child: Child,
    pub port: u16,
}

impl Worker {
    /// Starts one that `marker`, a word in its command line, tells from all other processes, and
    /// waits until it listens.
    pub fn start(marker: &str, port: u16, stubborn: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "worker::serves_when_asked", "--ignored", "--nocapture"]);
        // A filter that matches no test: it is there to be found by.
        command.args(["--test-threads=1", "--skip", marker]).env(PORT, port.to_string());
        if stubborn {
            command.env(STUBBORN, "1");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a worker");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let listens = stdout.lines().map_while(Result::ok).any(|line| line.ends_with("listening"));
        assert!(listens, "the worker on {port} never listened");
        Self { child, port }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_none()
    }

    /// SIGKILL, not by vervet. Does not wait for it.
    pub fn crash(&mut self) {
        self.child.kill().expect("killed");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a worker of the stories, not a test"]
fn serves_when_asked() {
    let Ok(port) = std::env::var(PORT) else { return };
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("set");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    // Whoever has a handler is not ended by the signal.
    let _term = std::env::var(STUBBORN).is_ok().then(|| {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler")
    });
    let listener = TcpListener::bind(("0.0.0.0", port.parse().expect("a port"))).expect("bound");
    println!("listening");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        // Requests here are small and come whole.
        let answered = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if length == 0 || answered.is_err() {
            return;
        }
    }
}
