//! Reads the backends of HAProxy, and how many of their servers must be up.

use super::{
    super::{
        reader::{Read, Report, Table},
        tree::Node,
        values,
    },
    WITHIN, expect, within,
};
use crate::{
    experiment::Check,
    host::haproxy::{Pool, is_name},
};

/// What the kernel takes for the path of a socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// The keys of a check by HAProxy.
pub fn check(table: &Table<'_>) -> Read<Check> {
    let pool = pool(table);
    if !table.has("expect") {
        return Err(table.missing("expect", "expect = { up = 3 }"));
    }
    let keys = &["within", "up"];
    let expected = expect(table, "what a haproxy probe expects", keys, |expect| {
        let Some(table) = expect else { return Ok((0, WITHIN)) };
        let within = within(table, WITHIN);
        let up = table.need("up", "up = 3", values::count(1..=100_000, "servers"));
        Ok((up?, within?))
    });
    let (up, within) = expected?;
    Ok(Check::Haproxy { pool: pool?, up, within })
}

/// The backend of an HAProxy, in a table with its keys.
pub fn pool(table: &Table<'_>) -> Read<Pool> {
    let socket = |node: &Node, report: &Report| {
        let path = values::absolute(node, report)?;
        if path.len() > SOCKET_PATH_MAX {
            return Err(report.error(node, "no socket can have a path of more than 107 bytes"));
        }
        Ok(path)
    };
    let haproxy = table.need("haproxy", "haproxy = \"/run/haproxy/admin.sock\"", socket);
    let backend = table.need("backend", "backend = \"checkout\"", backend);
    Ok(Pool { haproxy: haproxy?, backend: backend? })
}

fn backend(node: &Node, report: &Report) -> Read<String> {
    let name = values::line(node, report)?;
    if is_name(&name) {
        return Ok(name);
    }
    let help = "HAProxy's names have letters, digits, `-`, `_`, `.` and `:`";
    Err(report.advise(node, format!("`{name}` is not the name of a backend"), help))
}
