//! What a first experiment with each fault teaches, in the words of its comments. Texts only.

use crate::cli::draft::Kind;

/// What is said about a fault.
#[derive(Debug)]
pub struct Words {
    pub what: &'static str,
    pub learn: &'static str,
    pub failure: &'static str,
    pub hypothesis: &'static str,
    pub step: &'static str,
    pub duration: &'static str,
}

impl Words {
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Kill => Self {
                what: "Kill one of several instances and see whether anyone notices.",
                learn: "You learn whether one instance is one too many, and whether another takes its work.",
                failure: "A failure says that a request dies with the instance that it met.",
                hypothesis: "Customers notice nothing while one of the instances is gone",
                step: "lose an instance",
                duration: "how long to watch what follows",
            },
            Kind::Pause => Self {
                what: "Pause one of several instances: it lives, holds its connections and answers nobody.",
                learn: "You learn whether whoever calls it has a time limit, and asks another when it passes.",
                failure: "A failure says that there is none, or that it is longer than a customer's.",
                hypothesis: "Customers notice nothing while one of the instances hangs",
                step: "an instance hangs",
                duration: "then it goes on where it was",
            },
            Kind::Latency => Self {
                what: "Let answers come late, as over a tired network or from a busy host.",
                learn: "You learn who waits, for how long, and how many round trips a request takes.",
                failure: "A failure says that a call has no time limit, or that there are too many of them.",
                hypothesis: "Customers wait a little longer, and get their answers",
                step: "answers come late",
                duration: "then the delay is undone",
            },
            Kind::Connections => Self {
                what: "So many connections and no more: a full pool, a small proxy, an exhausted table.",
                learn: "You learn how those who are turned away take it. Needs load: a cap that nobody reaches\n\
                        # proves nothing, and the verdict is then `inconclusive`.",
                failure: "A failure says that nobody tries again, or that connections are held without need.",
                hypothesis: "Whoever is turned away tries again, and the others notice nothing",
                step: "so many connections and no more",
                duration: "then the cap is undone",
            },
            Kind::Unit => Self {
                what: "Stop one unit by way of systemd, as an operator or an upgrade would.",
                learn: "You learn whether you can do without it for as long as a deployment takes.",
                failure: "A failure during the step says that there is no spare, after it that a new one is not ready.",
                hypothesis: "Customers notice nothing while one of the units is stopped, nor when it is back",
                step: "stop a unit",
                duration: "then it is started again",
            },
        }
    }
}
