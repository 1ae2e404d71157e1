//! The directives that a user's message gives the scripted engine: `[[key=value …]]`.

use crate::fault::Fault;

/// The longest answer that a message can request, in tokens.
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
    /// The given text.
    Say(&'a str),
}

/// A fault that a message requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedFault {
    /// The fault.
    pub fault: Fault,
    /// Whether every request with this message meets it, and not only the first.
    pub always: bool,
}

/// All directives of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directives<'a> {
    /// Length of the answer in tokens.
    pub tokens: Option<usize>,
    /// The length of the reasoning in tokens, for models that reason.
    pub reasoning: Option<usize>,
    /// Whether the model reasons although the request forbids it, as some models do.
    pub unasked: bool,
    /// The tokens per second; 0 is as fast as possible.
    pub rate: Option<f64>,
    /// Milliseconds before the first token.
    pub first_ms: Option<u64>,
    /// The kind of answer.
    pub form: Form<'a>,
    /// The separator between the pieces of [`Form::Say`]; it is not part of the answer.
    pub by: Option<&'a str>,
    /// Whether a model that continues from within a piece writes another text.
    pub strict: bool,
    /// The faults, one after another: each request meets the first that has not fired.
    pub faults: Vec<AskedFault>,
}

impl<'a> Directives<'a> {
    /// Reads the blocks of a message. A block that is not understood is text.
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
            "think" => self.reasoning = value.parse().ok().or(self.reasoning),
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
    fn a_block_that_is_not_understood_is_text() {
        for text in ["[[", "[[]]", "[[tokens=x rate=-1 fault=nope]]", "]] [[a"] {
            assert_eq!(Directives::parse(text), Directives::default());
        }
    }
}
