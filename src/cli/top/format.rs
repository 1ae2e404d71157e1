//! Numbers, times and names, as they are shown.

use std::time::Duration;

/// Returns a number with a comma before each three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number and what it counts.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Returns a rate: with a decimal where it is small.
pub(super) fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { count(rate.round() as u64) }
}

/// Returns a time in one unit.
pub(super) fn time(time: Duration) -> String {
    match time.as_secs() {
        0 if time.as_millis() > 0 => format!("{} ms", time.as_millis()),
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Returns how long ago something was.
pub(super) fn ago(ago: Duration) -> String {
    if ago < Duration::from_millis(1_500) { "now".to_owned() } else { time(ago) }
}

/// Returns a number of bytes in one unit.
pub(super) fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib < 10.0 {
        format!("{mib:.1} MiB")
    } else if mib < 1_000.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1_024.0)
    }
}

/// Returns a bar of `width` cells, of which this share is full.
pub(super) fn bar(share: f64, width: usize) -> (String, String) {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    // An existing amount is visible.
    let full = if share > 0.0 { full.max(1) } else { full };
    ("\u{2588}".repeat(full), "\u{2591}".repeat(width - full))
}

/// Returns one column for each value, whose height is its share of the largest one.
pub(super) fn columns(values: impl Iterator<Item = f64> + Clone) -> String {
    let most = values.clone().fold(1.0_f64, f64::max);
    let column = |value: f64| {
        let eighths = (value / most * 8.0).ceil() as u32;
        char::from_u32(0x2580 + eighths.clamp(1, 8)).unwrap_or(' ')
    };
    values.map(column).collect()
}

/// Returns a name from Redis without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short_and_have_a_unit() {
        assert_eq!((count(7), count(1_204), count(1_000_000)), tuple("7", "1,204", "1,000,000"));
        assert_eq!((rate(0.0), rate(9.3), rate(312.4)), tuple("0", "9.3", "312"));
        let of = |seconds| time(Duration::from_secs(seconds));
        assert_eq!((of(0), of(119), of(120)), tuple("0 s", "119 s", "2 min"));
        assert_eq!((of(7_300), of(86_400), of(200_000)), tuple("2 h", "24 h", "2 d"));
        assert_eq!(
            (bytes(0), bytes(222_298_112), bytes(1 << 30)),
            tuple("0.0 MiB", "212 MiB", "1.0 GiB")
        );
        assert_eq!(counted(1, "turn", "turns"), "1 turn");
        assert_eq!(ago(Duration::from_millis(900)), "now");
    }

    fn tuple(one: &str, two: &str, three: &str) -> (String, String, String) {
        (one.to_owned(), two.to_owned(), three.to_owned())
    }

    #[test]
    fn a_bar_shows_a_little_as_something_and_a_column_is_its_share_of_the_largest() {
        assert_eq!(bar(0.01, 4), ("\u{2588}".to_owned(), "\u{2591}".repeat(3)));
        assert_eq!(bar(2.0, 4), ("\u{2588}".repeat(4), String::new()));
        assert_eq!(
            columns([0.0, 1.0, 50.0, 100.0].into_iter()),
            "\u{2581}\u{2581}\u{2584}\u{2588}"
        );
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable("m\x1b[2Jx\n"), "m [2Jx ");
    }
}
