//! The picture of the fleet: lines that fit a terminal, or have any width.
//!
//! Colours are the terminal's own, and none carries a meaning that the text lacks, so that the picture is
//! readable on light and dark ground and without colours.

use std::time::{Duration, Instant};

use jarvis::membership::ReplicaFigures;
use jarvis::queue::Overview;
use ratatui_core::style::{Color, Style};
use ratatui_core::text::{Line, Span};

use super::fleet::{KnownFleet, Trouble};
use super::format::{columns, count, counted, printable, rate, time};
use super::parts::parts;
use super::table::{bold, cut, dim, more};

/// How large the picture may be.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    width: usize,
    height: usize,
}

impl Bounds {
    /// More than any picture needs.
    pub(super) const NONE: Self = Self { width: 10_000, height: 100_000 };

    /// Returns the bounds of a terminal of this size.
    pub(super) fn of(width: u16, height: u16) -> Self {
        Self { width: width.into(), height: height.into() }
    }
}

/// Returns the picture for a terminal, with its last line at the bottom.
pub(super) fn page(fleet: &KnownFleet, bounds: Bounds, interval: Duration) -> Vec<Line<'static>> {
    let above = Bounds { height: bounds.height.saturating_sub(2), ..bounds };
    let mut page = lines(fleet, above);
    page.resize(bounds.height.saturating_sub(1), Line::default());
    let text = format!("q ends; looks at Redis every {}", time(interval));
    page.push(cut(Line::styled(text, dim()), bounds.width));
    page.truncate(bounds.height);
    page
}

/// Returns the picture. Where it is too high, the rows of its longest parts are counted instead.
pub(super) fn lines(fleet: &KnownFleet, bounds: Bounds) -> Vec<Line<'static>> {
    let mut head = vec![title(fleet, bounds.width)];
    let Some(look) = &fleet.look else {
        match &fleet.trouble {
            Some(trouble) => head.extend(trouble_lines(trouble, bounds.width)),
            None => head.push(cut(Line::styled("connecting to Redis", dim()), bounds.width)),
        }
        return head;
    };
    head.push(second_line(fleet, &look.overview, bounds.width));
    let mut parts = parts(fleet, &look.overview, &look.servers, bounds.width);
    if let Some(trouble) = &fleet.trouble {
        head.extend(trouble_lines(trouble, bounds.width));
        // The picture is out of date.
        parts.iter_mut().flatten().for_each(|line| *line = std::mem::take(line).patch_style(dim()));
    }
    fit(head, parts, bounds)
}

/// Joins the parts, with an empty line before each where there is room for it.
fn fit(
    head: Vec<Line<'static>>,
    parts: Vec<Vec<Line<'static>>>,
    bounds: Bounds,
) -> Vec<Line<'static>> {
    let room = bounds.height.saturating_sub(head.len());
    let mut shown: Vec<usize> = parts.iter().map(Vec::len).collect();
    let has_gaps = shown.iter().sum::<usize>() + shown.len() <= room;
    while shown.iter().sum::<usize>() > room {
        let longest = shown.iter_mut().max_by_key(|lines| **lines).filter(|lines| **lines > 2);
        let Some(longest) = longest else { break };
        *longest -= 1;
    }
    let mut page = head;
    for (mut part, shown) in parts.into_iter().zip(shown) {
        if has_gaps {
            page.push(Line::default());
        }
        if shown < part.len() {
            // The line that counts the rows takes the place of one of them.
            let left_out = part.len() - (shown - 1);
            part.truncate(shown - 1);
            part.push(more(left_out));
        }
        page.extend(part);
    }
    page.truncate(bounds.height);
    page
}

/// Returns the first line: the sums over the fleet, and the time.
fn title(fleet: &KnownFleet, width: usize) -> Line<'static> {
    let mut line = Line::from(vec![Span::styled("jarvis", bold())]);
    if let Some(look) = &fleet.look {
        let overview = &look.overview;
        let hosts = &overview.hosts.first;
        let used: u64 = hosts.iter().map(|host| host.used).sum();
        let slots: u64 = hosts.iter().map(|host| host.slots).sum();
        let waiting: u64 = overview.models.first.iter().map(|model| model.waiting).sum();
        let sockets: u64 = figures(overview).map(|figures| figures.websockets).sum();
        let sums = [
            counted(living(overview), "replica", "replicas"),
            format!("{} of {}", count(used), counted(slots, "slot", "slots")),
            counted(waiting, "waiting turn", "waiting turns"),
            counted(sockets, "socket", "sockets"),
        ];
        line.push_span(Span::raw(format!("  {}", sums.join(", "))));
    }
    let clock = chrono::Local::now().format("%H:%M:%S").to_string();
    let blanks = width.min(120).saturating_sub(line.width() + clock.len());
    if blanks >= 2 {
        line.push_span(Span::raw(" ".repeat(blanks)));
        line.push_span(Span::styled(clock, dim()));
    }
    cut(line, width)
}

/// Returns the number of replicas that have not signed off.
fn living(overview: &Overview) -> u64 {
    let listed = &overview.replicas;
    let left = listed.first.iter().filter(|replica| replica.counter.is_none()).count();
    listed.total.saturating_sub(left) as u64
}

/// Returns the second line: tokens now and at the last looks, and takeovers.
fn second_line(fleet: &KnownFleet, overview: &Overview, width: usize) -> Line<'static> {
    let tokens = fleet.tokens.back().copied().unwrap_or_default();
    let taken_over: u64 = figures(overview).map(|figures| figures.taken_over).sum();
    let mut line = Line::raw(format!("        {} tokens/s ", rate(tokens)));
    if fleet.tokens.len() > 1 {
        let columns = columns(fleet.tokens.iter().copied());
        line.push_span(Span::styled(columns, Style::new().fg(Color::Cyan)));
    }
    let taken_over = counted(taken_over, "turn", "turns");
    line.push_span(Span::raw(format!("  {taken_over} taken over by these replicas")));
    cut(line, width)
}

fn figures(overview: &Overview) -> impl Iterator<Item = &ReplicaFigures> {
    overview.replicas.first.iter().filter_map(|replica| replica.figures.as_ref())
}

/// Returns why there is no new look, in as many lines as it takes.
fn trouble_lines(trouble: &Trouble, width: usize) -> Vec<Line<'static>> {
    let since = time(Instant::now().saturating_duration_since(trouble.since));
    let text = format!("No news for {since}: {}. Trying again.", printable(&trouble.text));
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    let style = bold().fg(Color::Red);
    lines.into_iter().map(|line| cut(Line::styled(line, style), width)).collect()
}

#[cfg(test)]
mod tests {
    use jarvis::queue::{Capped, GoneOverview, HostOverview, ModelOverview, ReplicaOverview};
    use jarvis::redis::ServerReport;

    use super::super::sample::FleetSample;
    use super::*;

    fn listed<T>(first: Vec<T>) -> Capped<T> {
        Capped { total: first.len(), first }
    }

    fn replica(number: usize) -> ReplicaOverview {
        let figures = ReplicaFigures {
            version: "0.1.0".to_owned(),
            address: format!("jarvis-{number}:10200"),
            phase: "serving".to_owned(),
            turns: 12,
            websockets: 1_402,
            tokens: 121.5,
            taken_over: 3,
            ..ReplicaFigures::default()
        };
        ReplicaOverview {
            name: format!("{number:08x}-8b11-4c5c-9d47-0d1f5f1f3a11"),
            counter: Some(7),
            figures: Some(figures),
            age: Some(Duration::ZERO),
        }
    }

    fn host(used: u64, trial: u64, shut: u64) -> HostOverview {
        HostOverview {
            name: "http://10.0.0.7:11434".to_owned(),
            slots: 4,
            used,
            turn: Some(Duration::from_secs(9)),
            open: 3 - trial - shut,
            trial,
            shut,
            models: vec![("m:latest".to_owned(), true), ("qwen3:8b".to_owned(), false)],
        }
    }

    fn look(replicas: usize) -> FleetSample {
        let gone = GoneOverview {
            name: "f".repeat(36),
            ago: Duration::from_secs(14),
            reason: "connection_lost".to_owned(),
            turns: 3,
            figures: replica(9).figures,
        };
        let model = ModelOverview {
            name: "m:latest".to_owned(),
            waiting: 12,
            longest: Duration::from_secs(34),
        };
        let server = ServerReport {
            address: "redis-0:6379".to_owned(),
            version: "7.0.15".to_owned(),
            memory_used: 222_298_112,
            memory_max: 1 << 30,
            commands: 1_204,
            clients: 31,
            replicas: 1,
        };
        FleetSample {
            overview: Overview {
                replicas: listed((0..replicas).map(replica).collect()),
                gone: vec![gone],
                hosts: listed(vec![host(3, 0, 0), host(0, 1, 2)]),
                models: listed(vec![model]),
            },
            servers: vec![server],
        }
    }

    fn fleet(replicas: usize) -> KnownFleet {
        let mut fleet = KnownFleet::default();
        fleet.apply(Ok(look(replicas)), Instant::now());
        fleet
    }

    fn drawn(fleet: &KnownFleet, width: u16, height: u16) -> Vec<String> {
        let page = page(fleet, Bounds::of(width, height), Duration::from_secs(1));
        assert_eq!(page.len(), usize::from(height));
        for line in &page {
            assert!(line.width() <= usize::from(width), "{line}");
        }
        page.iter().map(|line| line.to_string().trim_end().to_owned()).collect()
    }

    #[test]
    fn a_terminal_of_80_by_24_shows_replicas_gone_ones_hosts_queue_and_redis() {
        let page = drawn(&fleet(3), 80, 24).join("\n");
        for part in [
            "3 replicas, 3 of 8 slots, 12 waiting turns, 4,206 sockets",
            "365 tokens/s",
            "9 turns taken over",
            "00000002  jarvis-2:10200",
            "1,402",
            "serving",
            "ffffffff  jarvis-9:10200  14 s",
            "its connections were lost",
            "3 of 4",
            "closed",
            "open at 2 of 3",
            "m* qwen3:8b",
            "m:latest       12          34 s",
            "212 MiB of 1.0 GiB",
            "1,204",
            "q ends",
        ] {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
    }

    #[test]
    fn rows_without_room_are_counted_and_no_part_vanishes() {
        for height in [12, 17, 24, 40] {
            let page = drawn(&fleet(60), 80, height);
            let page = page.join("\n");
            for part in ["REPLICA", "GONE", "HOST", "QUEUE", "REDIS", "q ends"] {
                assert!(height == 12 || page.contains(part), "{height}: no {part} in\n{page}");
            }
            let rows = page.matches("serving").count();
            let counted = format!("and {} more", 60 - rows);
            assert!(page.contains(&counted), "{height}: no {counted:?} in\n{page}");
        }
    }

    #[test]
    fn any_size_of_a_terminal_is_drawn() {
        for (width, height) in [(0, 0), (1, 1), (7, 3), (40, 10), (300, 90)] {
            drawn(&fleet(5), width, height);
        }
        assert!(drawn(&fleet(5), 200, 40).join("\n").contains("VERSION"));
    }

    #[test]
    fn while_redis_is_away_the_last_picture_stays_below_what_is_wrong() {
        let mut fleet = fleet(2);
        let text = "Redis is not available: refused; check --redis-url, and whether Redis runs";
        fleet.apply(Err(text.to_owned()), Instant::now());
        let page = drawn(&fleet, 60, 30).join(" ");
        assert!(
            page.contains("No news for") && page.contains("whether Redis runs. Trying"),
            "{page}"
        );
        assert!(page.contains("serving"), "{page}");
        let mut fleet = KnownFleet::default();
        assert!(drawn(&fleet, 60, 30).join(" ").contains("connecting"));
        fleet.apply(Err(text.to_owned()), Instant::now());
        assert!(drawn(&fleet, 60, 30).join(" ").contains("No news for"));
    }

    #[test]
    fn a_replica_that_is_silent_or_signed_off_and_a_breaker_say_so() {
        let mut quiet = look(2);
        quiet.overview.replicas.first[0].age = Some(Duration::from_secs(5));
        quiet.overview.replicas.first[1].counter = None;
        quiet.overview.hosts = listed(vec![host(5, 0, 3), host(0, 3, 0), host(0, 2, 0)]);
        let mut fleet = KnownFleet::default();
        fleet.apply(Ok(quiet), Instant::now());
        let page = drawn(&fleet, 100, 40).join("\n");
        for part in
            ["silent", "signed off", "1 replica,", "5 of 4", " open ", "half open at 2 of 3"]
        {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
    }

    #[test]
    fn an_empty_redis_says_what_to_start() {
        let mut fleet = KnownFleet::default();
        let look = FleetSample { overview: Overview::default(), servers: Vec::new() };
        fleet.apply(Ok(look), Instant::now());
        let page = drawn(&fleet, 80, 24).join("\n");
        for part in ["jarvis serve", "no turn waits", "grant INFO"] {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
    }
}
