//! Probes and readiness sources that are wrong, for `golden`.

/// Names, and the keys of a probe.
pub const PROBES: [(&str, &str); 26] = [
    ("pointer that is none", "http = \"http://a/\"\nexpect = { json = { ready = 3 } }"),
    ("pointer to null", "http = \"http://a/\"\nexpect = { json = { \"/a\" = [] } }"),
    ("expects nothing", "http = \"http://a/\"\nexpect = { json = { \"/a\" = {} } }"),
    ("header of the connection", "http = \"http://a/\"\nheaders = { Connection = \"close\" }"),
    ("no header's name", "http = \"http://a/\"\nheaders = { \"a b\" = \"c\", A = \"\" }"),
    ("same header", "http = \"http://a/\"\nheaders = { a = \"b\", A = \"c\" }"),
    ("header for headers", "http = \"http://a/\"\nexpect = { header = { a = \"b\" } }"),
    ("too few for a percentile", "http = \"http://a/\"\nexpect = { p99 = \"1s\", window = \"10s\" }"),
    ("percentile without a window", "http = \"http://a/\"\nexpect = { p50 = \"1s\" }"),
    ("window without a percentile", "http = \"http://a/\"\nexpect = { window = \"1s\" }"),
    ("dotted percentile", "http = \"http://a/\"\nexpect = { p99.9 = \"1s\", window = \"10s\" }"),
    ("no percentile", "http = \"http://a/\"\nexpect = { p100 = \"1s\", window = \"10s\" }"),
    ("key of another check", "tcp = \"a:1\"\nquery = \"up\""),
    ("address of the wrong kind", "dns = \"a.test\"\nexpect = { answer = \"::1\" }"),
    ("name of a server", "dns = \"a.test\"\nserver = \"dns.test:53\""),
    ("unknown record", "dns = \"a.test\"\nexpect = { type = \"AAA\" }"),
    ("nothing asked of prometheus", "prometheus = \"http://a/\""),
    ("query without a bound", "prometheus = \"http://a/\"\nquery = \"up\"\nexpect = {}"),
    ("query without expect", "prometheus = \"http://a/\"\nquery = \"up\""),
    ("two questions", "prometheus = \"http://a/\"\nquery = \"up\"\nquiet = \"Down\""),
    (
        "bounds that cross",
        "prometheus = \"http://a/\"\nquery = \"up\"\nexpect = { at_least = 3, at_most = 2 }",
    ),
    (
        "age of an expression",
        "prometheus = \"http://a/\"\nquiet = \"Down\"\nfresh = \"sum(up{job='checkout'})\"",
    ),
    ("age of a range", "prometheus = \"http://a/\"\nquiet = \"Down\"\nfresh = \"up[5m]\""),
    ("path of the API", "prometheus = \"http://a/api/v1\"\nquiet = \"Down\""),
    ("alert without a name", "prometheus = \"http://a/\"\nquiet = { job = \"a\" }"),
    ("no watchdog", "alertmanager = \"http://a/\"\nquiet = \"Down\""),
];

/// Names, and what a group has for `ready`.
pub const SOURCES: [(&str, &str); 14] = [
    ("backend of what", "{ haproxy = \"be\" }"),
    ("alerts are no count", "{ alertmanager = \"http://a/\" }"),
    ("total without count", "{ http = \"http://a/\", total = \"/a\" }"),
    ("count for one member", "{ http = \"http://a:{port}/\", count = \"/a\" }"),
    ("percentile of an instance", "{ http = \"http://a/\", expect = { p99 = \"1s\" } }"),
    ("status twice", "{ http = \"http://a/\", status = 200, expect = { body = \"a\" } }"),
    ("records that are no instances", "{ dns = \"a.test\", type = \"TXT\" }"),
    ("no query", "{ prometheus = \"http://a/\" }"),
    ("settles before a scrape", "{ prometheus = \"http://a/\", query = \"sum(up)\" }"),
    (
        "settles before a scrape, both said",
        "{ prometheus = \"http://a/\", query = \"sum(up)\", max_age = \"30s\" }\nsettle = \"20s\"",
    ),
    ("age of a sum", "{ prometheus = \"http://a/\", query = \"sum(up)\", fresh = \"sum(up)\" }"),
    ("slow source, named late", "{ dns = \"a.test\", within = \"3s\" }"),
    ("no backend", "{ haproxy = \"/run/h.sock\" }"),
    ("backend of nobody", "{ tcp = 80, backend = \"web\" }"),
];
