//! The parts of the picture: replicas, those that are gone, hosts, queue and Redis, a table each.

use std::time::Duration;

use jarvis::queue::{GoneOverview, HostOverview, ModelOverview, Overview, ReplicaOverview};
use jarvis::redis::ServerReport;
use ratatui_core::style::{Color, Style};
use ratatui_core::text::{Line, Span};

use super::fleet::KnownFleet;
use super::format::{ago, bar, bytes, count, printable, rate, time};
use super::table::{self, Cell, Column, cell, coloured, dim, more};

/// Cells of a bar; a host with fewer slots has one for each.
const BAR: u64 = 10;
/// Characters of a replica's name that are shown: it is random.
const NAME: usize = 8;
/// From this share on, the memory of Redis is coloured.
const FILLING: f64 = 0.75;
const ALMOST_FULL: f64 = 0.9;
/// After this time without a heartbeat a replica is shown as silent: others decide whether it is gone.
const SILENT: Duration = Duration::from_secs(2);

const REPLICAS: [Column; 11] = [
    Column::text("REPLICA"),
    Column::text("ADDRESS").rank(2),
    Column::number("SEEN"),
    Column::number("TURNS"),
    Column::number("SOCKETS"),
    Column::number("STREAMS").rank(3),
    Column::number("TOKENS/S"),
    Column::number("TAKEN OVER").rank(1),
    Column::number("UP").rank(5),
    Column::text("VERSION").rank(4),
    Column::text("STATE"),
];
const GONE: [Column; 5] = [
    Column::text("GONE"),
    Column::text("ADDRESS").rank(2),
    Column::number("AGO"),
    Column::number("TURNS TAKEN OVER"),
    Column::text("BECAUSE"),
];
const HOSTS: [Column; 5] = [
    Column::text("HOST"),
    Column::text("SLOTS"),
    Column::text("BREAKER"),
    Column::number("MEAN TURN").rank(1),
    Column::text("MODELS (* IN MEMORY)"),
];
const QUEUE: [Column; 3] =
    [Column::text("QUEUE"), Column::number("WAITING"), Column::number("LONGEST WAIT")];
const REDIS: [Column; 6] = [
    Column::text("REDIS"),
    Column::text("MEMORY"),
    Column::number("COMMANDS/S"),
    Column::number("CLIENTS").rank(2),
    Column::number("REPLICAS"),
    Column::text("VERSION").rank(1),
];

/// Returns the parts at this width.
pub(super) fn parts(
    fleet: &KnownFleet,
    overview: &Overview,
    servers: &[ServerReport],
    width: usize,
) -> Vec<Vec<Line<'static>>> {
    let part = |columns: &[Column], rows: Vec<Vec<Cell>>, total: usize, none: &'static str| {
        let listed = rows.len();
        let mut lines = table::lines(columns, rows, width);
        if listed == 0 {
            lines.push(Line::styled(none, dim()));
        } else if total > listed {
            lines.push(more(total - listed));
        }
        lines
    };
    let Overview { replicas, gone, hosts, models } = overview;
    let rows = replicas.first.iter().map(|replica| replica_row(fleet, replica)).collect();
    let none = "no replica has a heartbeat; start one with jarvis serve";
    let mut parts = vec![part(&REPLICAS, rows, replicas.total, none)];
    if !gone.is_empty() {
        parts.push(part(&GONE, gone.iter().map(gone_row).collect(), gone.len(), ""));
    }
    let rows = hosts.first.iter().map(host_row).collect();
    parts.push(part(&HOSTS, rows, hosts.total, "no replica has reported a host"));
    let rows = models.first.iter().map(model_row).collect();
    parts.push(part(&QUEUE, rows, models.total, "no turn waits"));
    let rows: Vec<_> = servers.iter().map(server_row).collect();
    parts.push(part(&REDIS, rows, servers.len(), "no primary describes itself; grant INFO"));
    parts
}

fn short(name: &str) -> String {
    printable(name).chars().take(NAME).collect()
}

fn replica_row(fleet: &KnownFleet, replica: &ReplicaOverview) -> Vec<Cell> {
    let figures = replica.figures.clone().unwrap_or_default();
    let age = fleet.heartbeat_age(&replica.name);
    let state = match (replica.counter, age) {
        (None, _) => vec![Span::styled("signed off", dim())],
        (_, Some(age)) if age >= SILENT => coloured("silent", Color::Red),
        _ if figures.phase.is_empty() => cell("alive"),
        _ if figures.phase == "serving" => cell("serving"),
        _ => coloured(printable(&figures.phase), Color::Yellow),
    };
    vec![
        cell(short(&replica.name)),
        cell(printable(&figures.address)),
        cell(age.map_or_else(|| "-".to_owned(), ago)),
        cell(count(figures.turns)),
        cell(count(figures.websockets)),
        cell(count(figures.event_streams)),
        cell(rate(figures.tokens)),
        cell(count(figures.taken_over)),
        cell(time(Duration::from_secs(figures.up))),
        cell(printable(&figures.version)),
        state,
    ]
}

fn gone_row(gone: &GoneOverview) -> Vec<Cell> {
    let because = match gone.reason.as_str() {
        "connection_lost" => coloured("its connections were lost", Color::Red),
        "lease_over" => coloured("its heartbeat stopped", Color::Red),
        "signed_off" => cell("it signed off"),
        other => cell(printable(other)),
    };
    let address = gone.figures.as_ref().map_or("", |figures| &figures.address);
    vec![
        cell(short(&gone.name)),
        cell(printable(address)),
        cell(ago(gone.ago)),
        cell(count(gone.turns)),
        because,
    ]
}

fn host_row(host: &HostOverview) -> Vec<Cell> {
    let HostOverview { name, slots, used, turn, open, trial, shut, models } = host;
    let models: Vec<String> = models
        .iter()
        .map(|(name, in_memory)| {
            let name = name.strip_suffix(":latest").unwrap_or(name);
            format!("{}{}", printable(name), if *in_memory { "*" } else { "" })
        })
        .collect();
    let share = *used as f64 / (*slots).max(1) as f64;
    let width = (*slots).clamp(1, BAR) as usize;
    let mut in_use = bar_cell(share, width, Color::Cyan);
    let over = if used > slots { Color::Red } else { Color::Reset };
    let blanks = BAR as usize + 1 - width;
    in_use.push(Span::raw(" ".repeat(blanks)));
    in_use.extend(coloured(format!("{} of {}", count(*used), count(*slots)), over));
    let all = open + trial + shut;
    let breaker = match (*trial, *shut) {
        _ if all == 0 => vec![Span::styled("unknown", dim())],
        (0, 0) => cell("closed"),
        (_, shut) if shut == all => coloured("open", Color::Red),
        (trial, _) if trial == all => coloured("half open", Color::Yellow),
        (trial, 0) => coloured(format!("half open at {trial} of {all}"), Color::Yellow),
        (_, shut) => coloured(format!("open at {shut} of {all}"), Color::Red),
    };
    vec![
        cell(printable(name.strip_prefix("http://").unwrap_or(name))),
        in_use,
        breaker,
        cell(turn.map_or_else(|| "-".to_owned(), time)),
        cell(models.join(" ")),
    ]
}

fn bar_cell(share: f64, width: usize, colour: Color) -> Cell {
    let (full, empty) = bar(share, width);
    vec![Span::styled(full, Style::new().fg(colour)), Span::styled(empty, dim())]
}

fn model_row(model: &ModelOverview) -> Vec<Cell> {
    vec![cell(printable(&model.name)), cell(count(model.waiting)), cell(time(model.longest))]
}

fn server_row(server: &ServerReport) -> Vec<Cell> {
    let (used, max) = (server.memory_used, server.memory_max);
    let mut memory = Vec::new();
    let text = if max == 0 {
        format!("{}, without a limit", bytes(used))
    } else {
        let share = used as f64 / max as f64;
        let colour = match share {
            share if share >= ALMOST_FULL => Color::Red,
            share if share >= FILLING => Color::Yellow,
            _ => Color::Cyan,
        };
        memory = bar_cell(share, BAR as usize, colour);
        format!(" {} of {}", bytes(used), bytes(max))
    };
    memory.push(Span::raw(text));
    vec![
        cell(printable(&server.address)),
        memory,
        cell(count(server.commands)),
        cell(count(server.clients)),
        cell(count(server.replicas)),
        cell(printable(&server.version)),
    ]
}
