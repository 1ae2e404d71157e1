//! Checks how long Ollama keeps an idle model loaded, by the rules of Ollama.

/// Checks a time in Ollama's format: a duration of Go (`5m`, `1h30m`, `-1s`) or whole seconds
/// (`300`, `0`, `-1`). Returns the time without the blanks around it.
///
/// # Errors
/// Where Ollama would refuse it.
pub(super) fn checked_keep_alive(text: &str) -> Result<String, String> {
    let text = text.trim();
    let usable = match text.parse::<i64>() {
        Ok(seconds) => seconds.unsigned_abs() <= LONGEST_SECONDS,
        Err(_) => is_duration(text),
    };
    if usable {
        return Ok(text.to_owned());
    }
    let expected = "expected a time as Ollama writes it: 5m or 1h30m, seconds as in 300, 0 to \
        unload at once, or -1 to stay forever";
    Err(expected.to_owned())
}

/// The longest time: Ollama counts nanoseconds in 64 bits.
const LONGEST_SECONDS: u64 = (i64::MAX / 1_000_000_000) as u64;

/// Returns whether Go's `time.ParseDuration` accepts the text: numbers, each with its unit.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return false,
        };
        let Ok(number) = number.parse::<f64>() else { return false };
        seconds += number * unit;
        rest = tail;
    }
    text.ends_with(char::is_alphabetic) && seconds <= LONGEST_SECONDS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_accepted_where_ollama_accepts_it() {
        for time in [
            "5m", "1h30m", "1.5h", ".5s", "5.s", "300", "0", "-1", "-1m", "+5m", "0s", "100ms",
            "1us", "1µs", "1μs", "1ns", "24h", "2562047h",
        ] {
            assert_eq!(checked_keep_alive(&format!(" {time}\n")).as_deref(), Ok(time));
        }
        for wrong in [
            "banana",
            "",
            " ",
            "5 m",
            "m",
            "5x",
            "5m3",
            "1.2.3s",
            "--1",
            "-",
            "5M",
            "1d",
            "1w",
            ".s",
            "5m,",
            "for ever",
            "3000000h",
            "99999999999",
            "1e3s",
            "infs",
        ] {
            assert!(checked_keep_alive(wrong).is_err(), "{wrong:?}");
        }
    }
}
