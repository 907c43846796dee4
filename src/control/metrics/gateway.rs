//! Metrics of the process: what it is, its clients, their buffers, its files, and how many events there were.

use std::fmt;

use super::families::{BYTES, Families, Labels, SECONDS, number, truth};
use super::groups::{seconds, unix, word};
use crate::control::model::{HookStatus, Status};

pub(super) fn write(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    what_it_is(families, status)?;
    clients(families, status)?;
    buffers(families, status)?;
    frames(families, status)?;
    let limit = status.descriptors_limit.map(|limit| (Labels::new(), number(limit)));
    families.gauge(
        "process_open_fds",
        None,
        "Descriptors that are open.",
        one(number(status.descriptors)),
    )?;
    families.gauge("process_max_fds", None, "Descriptors that may be open.", limit)?;
    let started = one(unix(status.started));
    families.gauge("process_start_time", SECONDS, "When the process began to serve, Unix time.", started)?;
    let events = status
        .event_counts
        .iter()
        .map(|count| (vec![("code", count.code.clone()), ("severity", word(&count.severity))], count.events));
    let help = "Events of groups, hooks and the gateway since the process began to serve.";
    families.counter("afterimage_events", None, help, events)?;
    hooks(families, status)
}

fn hooks(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    let of = |hook: &HookStatus| vec![("hook", hook.name.to_string())];
    let events = status.hooks.iter().flat_map(|hook| {
        [("told", hook.told), ("lost", hook.lost)].map(|(outcome, events)| {
            let labels = vec![("hook", hook.name.to_string()), ("outcome", outcome.to_owned())];
            (labels, events)
        })
    });
    let help =
        "Events that each hook was told, and those that it never is, since the process began to serve.";
    families.counter("afterimage_hook_events", None, help, events)?;
    let waiting = status.hooks.iter().map(|hook| (of(hook), number(hook.waiting)));
    families.gauge("afterimage_hook_waiting", None, "Events that wait to be told.", waiting)?;
    let failing = status.hooks.iter().map(|hook| (of(hook), truth(hook.failure.is_some())));
    families.gauge("afterimage_hook_failing", None, "Whether the hook's last try failed.", failing)
}

fn one(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}

fn what_it_is(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    let build = vec![("version", status.version.clone()), ("site", status.site.to_string())];
    families.gauge("afterimage_build_info", None, "1; its labels say what runs here.", [(build, 1.0)])?;
    let backend = vec![("backend", status.storage.backend.clone())];
    families.gauge(
        "afterimage_storage_info",
        None,
        "1; its label says what I/O goes through.",
        [(backend, 1.0)],
    )?;
    let direct = one(truth(status.storage.direct));
    families.gauge("afterimage_storage_direct", None, "Whether files bypass the page cache.", direct)
}

fn clients(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    let each = |nbd: u64, api: u64| [("nbd", nbd), ("api", api)];
    let labelled = |(service, count): (&str, u64)| (vec![("service", service.to_owned())], count);
    let gauge = |sample| {
        let (labels, count) = labelled(sample);
        (labels, number(count))
    };
    let now = each(status.connections, status.api_connections);
    families.gauge("afterimage_connections", None, "Clients connected.", now.map(gauge))?;
    let limit = each(status.connections_limit, status.api_connections_limit);
    families.gauge(
        "afterimage_connections_limit",
        None,
        "Clients that may be connected.",
        limit.map(gauge),
    )?;
    let turned_away = each(status.turned_away.clients, status.api_turned_away.clients);
    let help = "Clients turned away because there were too many.";
    families.counter("afterimage_clients_turned_away", None, help, turned_away.map(labelled))
}

fn buffers(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    let help = "Bytes that block clients hold, of requests in flight and replies not taken.";
    families.gauge("afterimage_buffers", BYTES, help, one(number(status.buffers_bytes)))?;
    let help = "Bytes that each block client may hold.";
    families.gauge(
        "afterimage_buffers_client_limit",
        BYTES,
        help,
        one(number(status.buffers_limit_bytes)),
    )?;
    let help = "Bytes of the common allowance of all block clients that are in use.";
    families.gauge("afterimage_buffers_shared", BYTES, help, one(number(status.buffers_total_bytes)))?;
    let help = "Bytes of that allowance.";
    let limit = one(number(status.buffers_total_limit_bytes));
    families.gauge("afterimage_buffers_shared_limit", BYTES, help, limit)?;
    let help = "For how long requests have waited for room in that allowance; 0 if none do.";
    let waiting = one(status.buffers_waiting_ms.map_or(0.0, seconds));
    families.gauge("afterimage_buffers_shared_waiting", SECONDS, help, waiting)
}

fn frames(families: &mut Families<'_>, status: &Status) -> fmt::Result {
    let help = "Memory of recently written frames, of all groups together.";
    families.gauge("afterimage_frames", BYTES, help, one(number(status.frames_total_bytes)))?;
    let help = "Most memory of recently written frames, of all groups together.";
    let limit = one(number(status.frames_total_limit_bytes));
    families.gauge("afterimage_frames_limit", BYTES, help, limit)
}
