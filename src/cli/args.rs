//! The command line, declared.
//!
//! Help texts are short and exact; every command shows one example. Nothing here acts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Where the policy is, unless said otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/vervet/vervet.toml";
/// Where the agent listens, unless its policy says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vervet/vervet.sock";

const AFTER: &str = "\
Exit codes: 0 passed, 1 failed, 2 bad usage or invalid file, 3 refused,
4 aborted, 5 inconclusive, 6 cleanup stuck, 7 agent unreachable or not permitted

A first look, without root and without touching this host: vervet demo";

/// Chaos engineering that cannot take more than the host's owner allowed.
#[derive(Debug, Parser)]
#[command(name = "vervet", version, after_help = AFTER, max_term_width = 80)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Agent and output")]
pub struct Global {
    /// The agent's socket [default: /run/vervet/vervet.sock]
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "host")]
    pub socket: Option<PathBuf>,
    /// Another host's agent, such as https://web1:7667
    #[arg(long, global = true, value_name = "URL")]
    pub host: Option<String>,
    /// File with the token's secret
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Trust this certificate authority (PEM) and no other
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Show this client certificate (PEM, with its key)
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorWhen,
    /// What to log on standard error, as RUST_LOG
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the agent
    #[command(after_help = "Example: vervet agent --config /etc/vervet/vervet.toml")]
    Agent(Agent),
    /// Run an experiment and follow it to its verdict
    #[command(after_help = "\
Ctrl-C aborts the run and waits until its faults are undone.

On a host without an agent --standalone starts one for the time of the run, on
the policy that --config names. It ends when everything is undone; if it is
killed, its warden undoes, and `vervet recover --config FILE` makes sure.

Example: vervet run kill-one.toml --seed 7")]
    Run(Run),
    /// Write a first experiment for a service of yours
    #[command(after_help = "\
On a terminal it asks for what the flags do not say. The groups that it offers
are those of the agent, if one is running.

Example: vervet new --kind kill --group checkout \\
           --url http://127.0.0.1:8080/healthz -o lose-one-checkout.toml")]
    New(super::new::New),
    /// Show what a run would do, decided as a run decides; touches nothing
    #[command(after_help = "Example: vervet plan kill-one.toml")]
    Plan(Plan),
    /// Check policies and experiments; reports every error of each file
    #[command(after_help = "Example: vervet check /etc/vervet/vervet.toml drills/*.toml")]
    Check(Check),
    /// List runs, newest first
    #[command(after_help = "Example: vervet runs --state running")]
    Runs(Runs),
    /// Show one run: steps, probes, verdict
    #[command(after_help = "Example: vervet show 0193a1 --events")]
    Show(Show),
    /// Follow a run, or the latest, or the next one
    #[command(after_help = "Example: vervet watch")]
    Watch(Watch),
    /// Abort a run and wait until its faults are undone
    #[command(after_help = "Example: vervet abort 0193a1")]
    Abort(Id),
    /// Stop everything and admit nothing until `vervet resume`
    #[command(after_help = "Example: vervet halt --reason 'outage in the shop'")]
    Halt(Halt),
    /// Release the halt (owners only)
    #[command(after_help = "Example: vervet resume")]
    Resume,
    /// What runs by itself, what is frozen, and why
    #[command(after_help = "\
Example: vervet calendar --weeks 4")]
    Calendar(Calendar),
    /// List schedules, pause and resume them
    #[command(after_help = "Example: vervet schedules pause monkey --reason 'release day'")]
    Schedules(Schedules),
    /// Is this chaos? Halt, groups, faults and runs at a glance
    #[command(after_help = "Example: vervet status")]
    Status,
    /// What is active on the host now
    #[command(after_help = "Example: vervet faults --json")]
    Faults,
    /// Check what this host allows; works without an agent
    #[command(after_help = "Example: vervet doctor")]
    Doctor(Config),
    /// Undo whatever a dead agent left behind; needs no agent
    #[command(after_help = "Example: vervet recover")]
    Recover(Recover),
    /// Tokens for the API
    #[command(subcommand)]
    Token(Token),
    /// See it all in a private sandbox: no root, nothing of this host touched
    #[command(after_help = "Example: vervet demo")]
    Demo(Demo),
    /// Print a completion script
    #[command(after_help = "\
Example: vervet completions bash > /etc/bash_completion.d/vervet")]
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page, or write all pages into DIR
    #[command(after_help = "Example: vervet man /usr/local/share/man/man1")]
    Man {
        /// Where to write one page for each command
        dir: Option<PathBuf>,
    },
    /// The second process of the agent
    #[command(hide = true)]
    Warden,
    /// The parts of the demo
    #[command(hide = true, subcommand)]
    DemoPart(DemoPart),
}

#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The policy
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct Agent {
    #[command(flatten)]
    pub policy: Config,
    /// Stop when standard input ends: for whoever starts an agent for a while
    #[arg(long, hide = true)]
    pub until_eof: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Recover {
    /// The policy, for where the journal is
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// The agent's state directory; then no policy is read
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Run {
    /// A file (with a / in it, or ending in .toml or .json), or the name of an experiment on the host
    #[arg(value_name = "FILE|NAME")]
    pub experiment: String,
    /// Repeat the random picks of a run
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Refuse unless this is still exactly what the plan said
    #[arg(long, value_name = "DIGEST")]
    pub plan: Option<String>,
    /// The same key begins the same run only once
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Begin the run, print its id, do not follow it
    #[arg(long)]
    pub detach: bool,
    /// Start an agent for the time of this run, on the policy of --config
    #[arg(long, requires = "config", conflicts_with_all = ["detach", "socket", "host"])]
    pub standalone: bool,
    /// The policy of a standalone run
    #[arg(long, value_name = "FILE", requires = "standalone")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// A file, or the name of an experiment on the host
    #[arg(value_name = "FILE|NAME")]
    pub experiment: String,
    /// Plan for this seed
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Policies and experiments, TOML or JSON; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Runs {
    /// Only runs in this state
    #[arg(long, value_enum)]
    pub state: Option<StateFilter>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// The states of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateFilter {
    Preflight,
    Running,
    Reverting,
    Finished,
}

impl StateFilter {
    /// As the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Running => "running",
            Self::Reverting => "reverting",
            Self::Finished => "finished",
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct Id {
    /// The run: its id, or the first digits where they are unique
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Clone, Args)]
pub struct Show {
    #[command(flatten)]
    pub run: Id,
    /// Also print the event log
    #[arg(long)]
    pub events: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// The run; without it the one that runs now, or the next one to begin
    #[arg(value_name = "ID")]
    pub id: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Calendar {
    /// How many weeks, from now on
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=52))]
    pub weeks: u16,
    /// Begin so many days ago: what became of slots, as far as it is remembered
    #[arg(long, value_name = "DAYS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=366))]
    pub past: u16,
}

#[derive(Debug, Clone, Args)]
pub struct Schedules {
    #[command(subcommand)]
    pub action: Option<ScheduleAction>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ScheduleAction {
    /// Begin no runs of it until it is resumed; survives restarts
    Pause {
        /// Its name, as `vervet schedules` shows it
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Every schedule of the host
        #[arg(long, conflicts_with = "name")]
        all: bool,
        /// Why, for those who wonder
        #[arg(long, value_name = "TEXT", default_value = "paused by hand")]
        reason: String,
    },
    /// Let it run again; what was missed is not made up for
    Resume {
        /// Its name, as `vervet schedules` shows it
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Every schedule of the host
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Halt {
    /// Why, for those who find the host halted
    #[arg(long, value_name = "TEXT", default_value = "halted by hand")]
    pub reason: String,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token: prints the secret once, and the lines for the policy
    #[command(after_help = "Example: vervet token new ci --role operator")]
    New {
        /// Its name in logs and reports
        name: String,
        /// What its bearer may do
        #[arg(long, value_enum, default_value = "operator")]
        role: RoleArg,
    },
}

/// What a token allows; each includes the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Read
    Observer,
    /// Also plan, run, abort and halt
    Operator,
    /// Also release the halt
    Owner,
}

impl RoleArg {
    /// As the policy spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// Shorter waits, for CI
    #[arg(long)]
    pub fast: bool,
    /// Same as --color never
    #[arg(long)]
    pub no_color: bool,
    /// Where to leave the reports and the log [default: ./vervet-demo]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum DemoPart {
    /// Pid 1 of the sandbox
    Stage {
        #[arg(long)]
        fast: bool,
        #[arg(long)]
        out: PathBuf,
    },
    /// One instance of the service
    Worker { port: u16 },
    /// The load balancer before the workers
    Front { port: u16, workers: Vec<u16> },
}
