//! What a user's message may ask of the scripted engine: `[[key=value …]]`.

use crate::fault::Fault;

/// Longest answer that can be asked for, in tokens.
pub const MOST_TOKENS: usize = 1_000_000;

/// The kind of answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form<'a> {
    /// Varied text with running numbers.
    #[default]
    Varied,
    /// `1 2 3 …`.
    Count,
    /// Thirty equal pieces, then the stream ends without a last line.
    Repeat,
    /// Exactly this.
    Say(&'a str),
}

/// A fault that a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedFault {
    /// The fault.
    pub fault: Fault,
    /// At every request with this message, not only at the first.
    pub always: bool,
}

/// Everything that a message asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directives<'a> {
    /// Length of the answer in tokens.
    pub tokens: Option<usize>,
    /// Length of the thoughts in tokens, for models that think.
    pub thoughts: Option<usize>,
    /// The model thinks although it is told not to, as some do.
    pub unasked: bool,
    /// Tokens per second; 0 is as fast as possible.
    pub rate: Option<f64>,
    /// Milliseconds before the first token.
    pub first_ms: Option<u64>,
    /// The kind of answer.
    pub form: Form<'a>,
    /// Stands between the pieces of [`Form::Say`], and is not part of the answer.
    pub by: Option<&'a str>,
    /// Asked to go on from within a piece, the model goes another way.
    pub strict: bool,
    /// One after another: each request meets the first that has not fired.
    pub faults: Vec<AskedFault>,
}

impl<'a> Directives<'a> {
    /// Reads the blocks of a message. What is not understood is text.
    pub fn parse(message: &'a str) -> Self {
        let mut directives = Self::default();
        let mut rest = message;
        while let Some((_, opened)) = rest.split_once("[[") {
            let Some((block, after)) = opened.split_once("]]") else {
                break;
            };
            for item in block.split_whitespace() {
                if item == "say" {
                    directives.form = Form::Say(after);
                } else {
                    directives.read(item);
                }
            }
            if matches!(directives.form, Form::Say(_)) {
                break;
            }
            rest = after;
        }
        directives
    }

    fn read(&mut self, item: &'a str) {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        match key {
            "tokens" => self.tokens = value.parse().ok().or(self.tokens),
            "think" => self.thoughts = value.parse().ok().or(self.thoughts),
            "first_ms" => self.first_ms = value.parse().ok().or(self.first_ms),
            "rate" => {
                if let Ok(rate) = value.parse::<f64>()
                    && rate.is_finite()
                    && rate >= 0.0
                {
                    self.rate = Some(rate);
                }
            }
            "unasked" => self.unasked = true,
            "by" => self.by = Some(value).filter(|by| !by.is_empty()),
            "strict" => self.strict = true,
            "count" => self.form = Form::Count,
            "repeat" => self.form = Form::Repeat,
            "fault" => {
                let (name, always) =
                    value.strip_suffix('!').map_or((value, false), |name| (name, true));
                if let Ok(fault) = name.parse() {
                    self.faults.push(AskedFault { fault, always });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;

    #[test]
    fn several_blocks_add_up_and_say_takes_the_rest() {
        let d = Directives::parse(
            "hi [[tokens=20 rate=30.5 strict by=|]] [[first_ms=7 fault=cut@3 fault=busy! say]]a [[count]]",
        );
        assert_eq!(d.tokens, Some(20));
        assert_eq!(d.rate, Some(30.5));
        assert_eq!(d.first_ms, Some(7));
        assert_eq!(d.form, Form::Say("a [[count]]"));
        assert_eq!((d.by, d.strict), (Some("|"), true));
        assert_eq!(d.faults[0].fault.kind, FaultKind::Cut);
        assert_eq!(d.faults[0].fault.at, 3);
        assert!(!d.faults[0].always);
        assert!(d.faults[1].always);
    }

    #[test]
    fn what_is_not_understood_is_text() {
        for text in ["[[", "[[]]", "[[tokens=x rate=-1 fault=nope]]", "]] [[a"] {
            assert_eq!(Directives::parse(text), Directives::default());
        }
    }
}
