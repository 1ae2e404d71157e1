//! One trial after another: an answer left alone, the same one broken off, and their comparison.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::http::{self, Response};

use super::reader::Reader;
use super::texts::{SCRIPTS, Script};
use super::{Dice, MODEL, Replica};
use crate::replicas;

/// The tokens of an answer.
const TOKENS: u32 = 60;
/// The characters by which two continuations may differ at their end: they may use up their tokens
/// some characters apart.
const SLACK: usize = 24;
const LIMIT: Duration = Duration::from_mins(1);

/// The results of the answers in one script. Each field is a column of the table.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub asked: u32,
    /// Answers without the script: the model did not write what the question requested.
    without: u32,
    pub broken: u32,
    /// Breaks right after a character that is not ASCII; in English, code and tables after punctuation.
    awkward: u32,
    killed: u32,
    identical: u32,
    /// Answers in which the model itself continues otherwise after the text that the client had
    /// read.
    reworded: u32,
    /// All other flaws: a character is missing, doubled or another one.
    flawed: u32,
    /// `stream_restart` events that took text back which the client had read.
    pub restarts: u32,
}

impl Tally {
    /// Returns the figures in the order of the columns.
    pub fn figures(&self) -> [u32; 9] {
        let Self { asked, without, broken, awkward, killed, .. } = *self;
        let Self { identical, reworded, flawed, restarts, .. } = *self;
        [asked, without, broken, awkward, killed, identical, reworded, flawed, restarts]
    }

    /// Returns the sum of two results.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            without: self.without + other.without,
            broken: self.broken + other.broken,
            awkward: self.awkward + other.awkward,
            killed: self.killed + other.killed,
            identical: self.identical + other.identical,
            reworded: self.reworded + other.reworded,
            flawed: self.flawed + other.flawed,
            restarts: self.restarts + other.restarts,
        }
    }
}

/// All answers.
pub struct Trial {
    host: String,
    pair: Vec<Replica>,
    /// The seed, which decides where answers are broken off.
    pub dice: Dice,
    /// The results, one a script.
    pub tallies: Vec<Tally>,
    /// Answers that were the same when requested twice.
    pub repeated: u32,
    /// The flaws, in words.
    pub flaws: Vec<String>,
}

/// The last continuation that the model was requested to write.
#[derive(Default)]
struct Continued {
    /// The text behind the prompt.
    before: String,
    prompt: String,
    options: Value,
}

impl Trial {
    /// Creates an empty record.
    pub fn new(host: String, pair: Vec<Replica>, dice: Dice) -> Self {
        let tallies = vec![Tally::default(); SCRIPTS.len()];
        Self { host, pair, dice, tallies, repeated: 0, flaws: Vec::new() }
    }

    /// Sends one question twice, and breaks the second answer off.
    ///
    /// # Errors
    /// Fails where a server does not do what it should.
    pub fn ask(
        &mut self,
        which: usize,
        question: &str,
        awkward: bool,
        kill: bool,
    ) -> anyhow::Result<()> {
        let script = &SCRIPTS[which];
        self.tallies[which].asked += 1;
        call("DELETE", &format!("{}/sim/requests", self.host), None)?;
        let url = format!("{}/api/v1/chat", self.pair[0].address.url());
        let alone = call("POST", &url, Some(&body(question, &random_id()?, false)))?;
        let pieces = self.pieces()?;
        let expected = pieces.concat();
        self.repeated += u32::from(alone["response"] == *expected);
        if !(script.is_in)(&expected) || pieces.len() < 2 {
            self.tallies[which].without += 1;
            return Ok(());
        }
        let broken_after = self.place(script, &pieces, awkward);
        let so_far = pieces[..broken_after].concat();
        let reader = self.broken(question, broken_after, &so_far, kill)?;
        let answer = reader.whole.clone().unwrap_or_default();
        let flaw = if reader.holes > 0 || reader.text != answer {
            Some(format!("  the client holds {:?} of {answer:?}", reader.text))
        } else if answer == expected {
            self.tallies[which].identical += 1;
            None
        } else if self.is_the_models_doing(&so_far, &answer, &expected)? {
            self.tallies[which].reworded += 1;
            None
        } else {
            let before = self.continued()?.before;
            Some(format!(
                "  expected {expected:?}\n  came     {answer:?}\n  broken after {so_far:?}, \
                 asked to go on after {before:?}"
            ))
        };
        let tally = &mut self.tallies[which];
        tally.broken += 1;
        tally.awkward += u32::from(so_far.chars().next_back().is_some_and(script.is_awkward));
        tally.killed += u32::from(kill);
        tally.restarts += reader.restarts;
        tally.flawed += u32::from(flaw.is_some());
        self.flaws.extend(flaw.map(|flaw| format!("{}: {question}\n{flaw}", script.name)));
        Ok(())
    }

    /// Returns the pieces of the host's last answer, as it streams them: the host answers once
    /// more.
    fn pieces(&self) -> anyhow::Result<Vec<String>> {
        let requests = self.requests()?;
        let is_answer = |entry: &&Value| entry["path"] == "/api/chat" && entry["tokens"] != 0;
        let asked = requests.iter().rev().find(is_answer).context("the host was not asked")?;
        let mut request = asked["request"].clone();
        request["stream"] = json!(true);
        let answer = open("POST", &format!("{}/api/chat", self.host), Some(&request))?;
        let mut pieces = Vec::new();
        for line in answer.lines() {
            let line: Value = serde_json::from_str(&line?)?;
            let piece = line["message"]["content"].as_str().unwrap_or_default();
            if !piece.is_empty() {
                pieces.push(piece.to_owned());
            }
        }
        Ok(pieces)
    }

    /// Returns the number of pieces before the break.
    fn place(&mut self, script: &Script, pieces: &[String], awkward: bool) -> usize {
        let is_awkward =
            |at: &usize| pieces[at - 1].chars().next_back().is_some_and(script.is_awkward);
        let places: Vec<usize> = (1..pieces.len()).collect();
        let chosen: Vec<usize> =
            places.iter().copied().filter(|at| awkward && is_awkward(at)).collect();
        let places = if chosen.is_empty() { places } else { chosen };
        places[self.dice.below(places.len())]
    }

    fn broken(
        &self,
        question: &str,
        pieces: usize,
        so_far: &str,
        kill: bool,
    ) -> anyhow::Result<Reader> {
        let [writer, other] = &self.pair[..] else { anyhow::bail!("two replicas are needed") };
        let (session, mut reader) = (random_id()?, Reader::default());
        let fault = if kill { "stall" } else { "cut" };
        let fault = json!({"fault": fault, "after_pieces": pieces, "path": "/api/chat"});
        let faults = format!("{}/sim/faults", self.host);
        call("POST", &faults, Some(&fault))?;
        let url = format!("{}/api/v1/chat", writer.address.url());
        for line in open("POST", &url, Some(&body(question, &session, true)))?.lines() {
            let Ok(line) = line else { break };
            let event_ended = reader.line(&line)?;
            if event_ended && kill && reader.text == so_far {
                writer.service.process.kill();
                break;
            }
            if reader.whole.is_some() {
                break;
            }
        }
        call("DELETE", &faults, None)?;
        if !kill {
            return Ok(reader);
        }
        writer.service.process.start()?;
        let Reader { generation, cursor, .. } = &reader;
        let url = format!(
            "{}/api/v1/chat/sessions/{session}/events?generation_id={generation}&cursor={cursor}",
            other.address.url()
        );
        for line in open("GET", &url, None)?.lines() {
            reader.line(&line?)?;
            if reader.whole.is_some() {
                break;
            }
        }
        replicas::wait_until_ready(&writer.service, &writer.address)?;
        Ok(reader)
    }

    /// Returns whether all text that was read is unchanged, and the model alone continues otherwise
    /// from there, too.
    fn is_the_models_doing(
        &self,
        so_far: &str,
        answer: &str,
        expected: &str,
    ) -> anyhow::Result<bool> {
        let continued = self.continued()?;
        let from = |text: &str| -> anyhow::Result<String> {
            let prompt = format!("{}{text}", continued.prompt);
            let request = json!({
                "model": MODEL, "prompt": prompt, "raw": true, "stream": false,
                "options": continued.options,
            });
            let reply = call("POST", &format!("{}/api/generate", self.host), Some(&request))?;
            Ok(format!("{text}{}", reply["response"].as_str().unwrap_or_default()))
        };
        let (exact, asked) = (from(so_far)?, from(&continued.before)?);
        let own_words = alike(answer, &exact) || alike(answer, &asked);
        Ok(answer.starts_with(so_far) && own_words && !alike(&exact, expected))
    }

    fn continued(&self) -> anyhow::Result<Continued> {
        const OPENING: &str = "<|im_start|>assistant\n";
        let requests = self.requests()?;
        let is_continuation = |entry: &&Value| {
            entry["path"] == "/api/generate" && entry["options"]["num_predict"] != 1
        };
        let Some(entry) = requests.iter().rev().find(is_continuation) else {
            return Ok(Continued::default());
        };
        let whole = entry["prompt"].as_str().unwrap_or_default();
        let (prompt, before) = whole.rsplit_once(OPENING).unwrap_or((whole, ""));
        Ok(Continued {
            before: before.to_owned(),
            prompt: format!("{prompt}{OPENING}"),
            options: entry["options"].clone(),
        })
    }

    fn requests(&self) -> anyhow::Result<Vec<Value>> {
        let journal = call("GET", &format!("{}/sim/requests", self.host), None)?;
        Ok(journal["requests"].as_array().cloned().unwrap_or_default())
    }
}

/// Returns whether two texts are the same but for their last characters.
fn alike(one: &str, other: &str) -> bool {
    let (shorter, longer) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    longer.strip_prefix(shorter).is_some_and(|rest| rest.chars().count() <= SLACK)
}

/// Returns a random UUID from the kernel.
fn random_id() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

fn body(question: &str, session: &str, stream: bool) -> Value {
    json!({
        "message": question, "session_id": session, "temperature": 0, "max_tokens": TOKENS,
        "stream": stream,
    })
}

fn open(method: &str, url: &str, body: Option<&Value>) -> anyhow::Result<Response> {
    let body = body.map(Value::to_string);
    let answer = http::send(method, url, body.as_deref(), LIMIT)?;
    let status = answer.status;
    if !(200..300).contains(&status) {
        let text = answer.text().unwrap_or_default();
        anyhow::bail!("{method} {url}: {status} {text}");
    }
    Ok(answer)
}

fn call(method: &str, url: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let text = open(method, url, body)?.text()?;
    ensure!(text.is_empty() || text.starts_with(['{', '[']), "{method} {url}: not JSON: {text}");
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_alike_when_only_their_last_characters_differ_in_number() {
        assert!(alike("one two", "one two three"));
        assert!(!alike("one two", "one three"));
        assert!(!alike("one", &format!("one{}", "é".repeat(SLACK + 1))));
    }
}
