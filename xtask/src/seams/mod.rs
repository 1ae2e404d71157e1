//! `seams`: compares answers of a real model, each broken off once, with the same ones left alone.

mod reader;
mod texts;
mod trial;

use std::path::Path;
use std::sync::Arc;

use testkit::Port;

use crate::address::Address;
use crate::console::{self, Progress, line, say, step};
use crate::proof::random_seed;
use crate::services::{Service, Services};
use crate::{models, paths, redis, replicas, signals};
use texts::SCRIPTS;
use trial::{Tally, Trial};

/// The default model.
pub(crate) const MODEL: &str = "tinyllama:latest";
/// One answer in this many has its writer killed instead of the stream of the model.
const KILL_EVERY: u32 = 5;
/// A short replica lease, because each killed writer costs one.
const LEASE_MS: &str = "1000";
const COLUMNS: [&str; 9] = [
    "asked",
    "without",
    "broken",
    "awkward",
    "killed",
    "identical",
    "reworded",
    "flawed",
    "restarts",
];

/// A replica and its address.
pub(crate) struct Replica {
    pub service: Arc<Service>,
    pub address: Address,
    _port: Port,
}

/// Runs this many trials. Returns whether no answer was flawed.
///
/// # Errors
/// Fails where a program that is needed is missing.
pub fn seams(answers: u32, seed: Option<u64>) -> anyhow::Result<bool> {
    let seed = seed.unwrap_or_else(random_seed);
    console::title(&format!(
        "make seams: {answers} answers, SEED={seed} breaks them at the same places"
    ));
    let services = Services::default();
    let folder = paths::run().join("seams");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let outcome = run(&services, &folder, answers, Dice(seed));
    services.stop();
    outcome
}

fn run(services: &Services, folder: &Path, answers: u32, dice: Dice) -> anyhow::Result<bool> {
    replicas::build(&["jarvis", "ollama-sim"])?;
    let models = models::small(services, MODEL.to_owned())?.ready(services)?;
    let redis = redis::private(services, &redis::socket_path("seams")?, folder)?;
    let mut settings = replicas::settings(&redis, &models);
    settings.push(("JARVIS_LEASE_MS", LEASE_MS.to_owned()));
    let mut pair = Vec::new();
    step("jarvis", || {
        for number in 1..=2 {
            let port = Port::reserve()?;
            let address = Address { host: "127.0.0.1".to_owned(), port: port.number() };
            let service =
                replicas::start(services, &format!("seams-{number}"), &address, &settings)?;
            replicas::wait_until_ready(&service, &address)?;
            pair.push(Replica { service, address, _port: port });
        }
        Ok("two replicas".to_owned())
    })?;
    let mut trial = Trial::new(models.urls, pair, dice);
    let mut questions: Vec<Vec<String>> = SCRIPTS.iter().map(texts::Script::questions).collect();
    for questions in &mut questions {
        trial.dice.shuffle(questions);
    }
    let mut progress = Progress::new();
    for number in 0..answers {
        signals::check()?;
        // Each script comes in turn, half of the answers broken at an awkward character, and some
        // with a killed writer.
        let (turn, which) = (number / SCRIPTS.len() as u32, number as usize % SCRIPTS.len());
        let kill = (turn + which as u32).is_multiple_of(KILL_EVERY);
        let question = &questions[which][turn as usize % questions[which].len()];
        trial.ask(which, question, turn.is_multiple_of(2), kill)?;
        progress.show(&format!("{} of {answers}", number + 1));
    }
    drop(progress);
    Ok(report(&trial))
}

fn report(trial: &Trial) -> bool {
    let total = trial.tallies.iter().fold(Tally::default(), |sum, tally| sum.plus(tally));
    console::title("Result");
    let repeated =
        format!("{} of {} answers are the same when asked twice", trial.repeated, total.asked);
    line("alone", &repeated, None);
    let row = |name: &str, cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>10}")).collect();
        say(&format!("  {name:<9}{}", cells.concat()));
    };
    say("");
    row("", &COLUMNS.map(str::to_owned));
    let names = SCRIPTS.iter().map(|script| script.name).chain(["all"]);
    for (name, tally) in names.zip(trial.tallies.iter().chain([&total])) {
        row(name, &tally.figures().map(|figure| figure.to_string()));
    }
    say(
        "\n  without: the answer has nothing of the script and was not broken off. awkward: broken off right\n  \
         after a character that is not ASCII; in English, code and tables right after punctuation.\n  \
         reworded: the model itself goes another way after the text that was read. flawed: a character\n  \
         is missing, doubled or another one. restarts: stream_restart events for text that was read.",
    );
    for flaw in &trial.flaws {
        say(&format!("\n{flaw}"));
    }
    trial.flaws.is_empty() && total.restarts == 0 && total.broken > 0
}

/// Random numbers that a seed repeats (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}
