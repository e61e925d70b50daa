//! Four nginx behind an HAProxy, in the network namespace of the story: real servers with
//! configurations of their own, ended by the ids they were started with.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::signal::Signal;
use vervet::host::haproxy::Pool;

use crate::harness::{PATIENCE, Stage, send};

/// Where customers ask.
pub const FRONT: u16 = 8000;
/// Where the four listen.
pub const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];

/// How long a supervisor takes to start another one.
const RESPAWN: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(5);

/// Why this machine has no such servers, if it has none.
pub fn missing() -> Option<String> {
    ["haproxy", "nginx", "setpriv"].into_iter().find_map(|program| {
        let mut asked = Command::new(program);
        let asked = asked.arg("-v").stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null());
        asked.status().is_err().then(|| format!("there is no {program} here"))
    })
}

/// A server of the packages, which ends in an orderly way when the thread that started it does.
fn start(program: &str, args: &[&str], dir: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join(format!("{program}.log")));
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("a log"))
        .spawn()
        .expect("starts")
}

/// The servers of one story.
pub struct Balanced {
    pub dir: PathBuf,
    haproxy: Option<Child>,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
    /// The pids of the four, in the order of their ports.
    masters: Arc<Mutex<Vec<u32>>>,
}

impl Balanced {
    /// Starts everything and waits until HAProxy has all four up. `extra` are more lines of the backend.
    pub fn start(stage: &mut Stage, extra: &str) -> Self {
        let dir = stage.dir.path().to_owned();
        write_nginx(&dir);
        write_haproxy(&dir, extra);
        let (stop, masters) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(vec![0; 4])));
        let supervisor = {
            let (dir, stop, masters) = (dir.clone(), Arc::clone(&stop), Arc::clone(&masters));
            std::thread::spawn(move || supervise(&dir, &stop, &masters))
        };
        let mut this = Self { dir, haproxy: None, stop, supervisor: Some(supervisor), masters };
        this.start_haproxy(stage);
        this
    }

    pub fn start_haproxy(&mut self, stage: &mut Stage) {
        let config = self.dir.join("haproxy.cfg");
        self.haproxy =
            Some(start("haproxy", &["-db", "-f", config.to_str().expect("UTF-8")], &self.dir));
        stage.until("HAProxy has all of them up", |_| (self.up() >= PORTS.len()).then_some(()));
    }

    /// A new process takes the sockets over, and the old one goes when it has nothing left to do.
    pub fn reload_haproxy(&mut self) {
        let mut old = self.haproxy.take().expect("it runs");
        let (config, pid) = (self.dir.join("haproxy.cfg"), old.id().to_string());
        let args = ["-db", "-f", config.to_str().expect("UTF-8"), "-sf", &pid];
        self.haproxy = Some(start("haproxy", &args, &self.dir));
        std::thread::spawn(move || old.wait());
    }

    pub fn signal_haproxy(&self, signal: Signal) {
        send(self.haproxy.as_ref().expect("it runs").id(), signal);
    }

    pub fn stop_haproxy(&mut self) {
        if let Some(mut child) = self.haproxy.take() {
            send(child.id(), Signal::SIGCONT);
            send(child.id(), Signal::SIGTERM);
            let _ = child.wait();
        }
    }

    pub fn pool(&self) -> Pool {
        Pool {
            haproxy: self.dir.join("admin.sock").to_str().expect("UTF-8").to_owned(),
            backend: "web".to_owned(),
        }
    }

    pub fn masters(&self) -> Vec<u32> {
        self.masters.lock().expect("whole").clone()
    }

    /// What HAProxy says to a command; nothing when it says nothing.
    pub fn ask(&self, command: &str) -> String {
        ask(&self.dir, command)
    }

    /// HAProxy's word for each server.
    pub fn states(&self) -> Vec<String> {
        states(&self.dir)
    }

    /// As many as HAProxy gives requests to.
    pub fn up(&self) -> usize {
        up(&self.dir)
    }

    pub fn draining(&self) -> usize {
        self.states().iter().filter(|word| word.starts_with("DRAIN")).count()
    }

    /// All that an administrator or vervet can have changed in the servers: not what checks and the
    /// passing of time change.
    pub fn settings(&self) -> String {
        let table = self.ask("show servers state web");
        let keep = [1, 3, 4, 6, 7, 8, 15, 16, 17, 18];
        let rows = table.lines().filter(|line| line.contains(" web "));
        let cut = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            keep.iter().map(|at| fields[*at]).collect::<Vec<_>>().join(" ")
        };
        rows.map(cut).collect::<Vec<_>>().join("\n")
    }

    /// A `[[group]]` of the four with a floor of three, whose capacity HAProxy tells.
    pub fn group(&self, every: &str) -> String {
        let Pool { haproxy, backend } = self.pool();
        let dir = self.dir.display();
        format!(
            "[[group]]\nname = \"shop\"\nfloor = 3\nexpected = 4\n\
             members = {{ cmdline = \"nginx: master process .*{dir}/\" }}\n\
             ready = {{ haproxy = \"{haproxy}\", backend = \"{backend}\", within = \"500ms\" }}\n\
             poll = \"100ms\"\nstale_after = \"2s\"\nsettle = \"500ms\"\n\
             removal = {{ at_once = 1, every = \"{every}\" }}\n"
        )
    }

    /// A step that kills one of them, after it was drained.
    pub fn drained_kill(&self, within: &str, duration: &str, late: &str) -> String {
        let Pool { haproxy, backend } = self.pool();
        format!(
            "[[step]]\nname = \"lose one\"\nfault = \"kill\"\nsignal = \"SIGTERM\"\n\
             target = {{ group = \"shop\", pick = 1 }}\nduration = \"{duration}\"\n\
             drain = {{ haproxy = \"{haproxy}\", backend = \"{backend}\", within = \"{within}\", \
             late = \"{late}\" }}\n"
        )
    }
}

impl Drop for Balanced {
    fn drop(&mut self) {
        self.stop_haproxy();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

/// Keeps the four running until it is told to stop, then ends them. Whoever starts a process is the
/// thread with which it ends, so it is this one for all of them.
fn supervise(dir: &Path, stop: &AtomicBool, masters: &Mutex<Vec<u32>>) {
    let begin = |port: u16| {
        let config = dir.join(format!("{port}.conf"));
        let args = ["-c", config.to_str().expect("UTF-8"), "-e", "stderr", "-p"];
        start("nginx", &[&args[..], &[dir.to_str().expect("UTF-8")]].concat(), dir)
    };
    let mut children: Vec<Child> = PORTS.into_iter().map(begin).collect();
    while !stop.load(Ordering::Relaxed) {
        for (at, child) in children.iter_mut().enumerate() {
            if child.try_wait().expect("asked").is_some() {
                std::thread::sleep(RESPAWN);
                *child = begin(PORTS[at]);
            }
            masters.lock().expect("whole")[at] = child.id();
        }
        std::thread::sleep(LOOK);
    }
    for child in &mut children {
        send(child.id(), Signal::SIGCONT);
        send(child.id(), Signal::SIGTERM);
        let _ = child.wait();
    }
}

fn write_nginx(dir: &Path) {
    fs::write(dir.join("slow"), vec![b'x'; 20_000]).expect("written");
    fs::write(dir.join("endless"), vec![b'x'; 4 << 20]).expect("written");
    for port in PORTS {
        let base = dir.display();
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {base}/{port}.pid;\n\
             events {{ worker_connections 64; }}\nhttp {{\n  access_log off;\n\
             client_body_temp_path {base}/{port}-1; proxy_temp_path {base}/{port}-2;\n\
             fastcgi_temp_path {base}/{port}-3; uwsgi_temp_path {base}/{port}-4;\n\
             scgi_temp_path {base}/{port}-5;\n  server {{\n    listen 127.0.0.1:{port};\n    root {base};\n\
             location = / {{ return 200 \"ok\"; }}\n    location = /slow {{ limit_rate 100k; }}\n\
             location = /endless {{ limit_rate 20k; }}\n  }}\n}}\n"
        );
        fs::write(dir.join(format!("{port}.conf")), text).expect("written");
    }
}

fn write_haproxy(dir: &Path, extra: &str) {
    let base = dir.display();
    let servers: Vec<String> = PORTS
        .iter()
        .map(|port| {
            format!("  server s{} 127.0.0.1:{port} check inter 100ms fall 2 rise 1\n", port - FRONT)
        })
        .collect();
    // No second try: what fails shows.
    let text = format!(
        "global\n  stats socket {base}/admin.sock mode 600 level admin\n  \
         stats socket {base}/operator.sock mode 600 level operator\n  \
         stats socket {base}/user.sock mode 600 level user\n  nbthread 1\n\
         defaults\n  mode http\n  retries 0\n  timeout connect 2s\n  timeout client 30s\n  \
         timeout server 30s\n  timeout check 2s\n\
         frontend front\n  bind 127.0.0.1:{FRONT}\n  default_backend web\n\
         backend web\n{}{extra}backend unchecked\n  server s1 127.0.0.1:8001\n\
         backend elsewhere\n  server s1 192.0.2.1:8001 check\n",
        servers.concat()
    );
    fs::write(dir.join("haproxy.cfg"), text).expect("written");
}

pub fn ask(dir: &Path, command: &str) -> String {
    let exchange = || -> std::io::Result<String> {
        let mut socket = UnixStream::connect(dir.join("admin.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.write_all(format!("{command}\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().unwrap_or_default()
}

pub fn states(dir: &Path) -> Vec<String> {
    let table = ask(dir, "show stat web 4 -1");
    let rows = table.lines().filter(|line| line.starts_with("web,"));
    rows.filter_map(|line| line.split(',').nth(17).map(str::to_owned)).collect()
}

pub fn up(dir: &Path) -> usize {
    states(dir).iter().filter(|word| word.starts_with("UP")).count()
}

/// A customer's request: the bytes of the body, if it came whole.
pub fn fetch(path: &str) -> Result<usize, String> {
    let go = || -> std::io::Result<Vec<u8>> {
        let mut stream = open(path)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = go().map_err(|error| error.to_string())?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no head")?;
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    let length =
        text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let body = answer.len() - head - 4;
    let whole = text.starts_with("HTTP/1.1 200") && length == Some(body);
    if whole {
        Ok(body)
    } else {
        Err(format!("{} ({body} bytes)", text.lines().next().unwrap_or_default()))
    }
}

/// A request that was sent; its answer is still to come.
pub fn open(path: &str) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], FRONT));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}
