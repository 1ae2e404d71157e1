//! The metrics that a replica exports.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;

use serde_json::json;
use support::client::{Socket, kinds, post};
use support::metrics::metrics;
use support::setup::{Setup, setup};

/// A family of metrics: its help text, its type, and whether it has a sample.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    has_sample: bool,
}

/// Parses the text format of Prometheus: every family that has a line.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            help.clone_into(&mut families.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
        } else if !line.is_empty() {
            assert!(!line.starts_with('#'), "an unknown comment: {line}");
            let sample = line.split(['{', ' ']).next().unwrap_or_default();
            // A histogram's samples have a suffix behind the name of its family.
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| sample.strip_suffix(suffix))
                .find(|family| families.contains_key(*family))
                .unwrap_or(sample);
            families.entry(family.to_owned()).or_default().has_sample = true;
        }
    }
    families
}

#[tokio::test]
async fn every_exported_metric_has_a_help_text_a_type_and_the_suffix_of_its_type() {
    let Setup { replica, .. } = &setup("0", &[]).await;
    let (mut socket, _) = Socket::open(replica, "/ws").await;
    socket.say(&json!({"message": "[[tokens=20]] over a socket"})).await;
    assert!(kinds(&socket.until("stream_end").await).contains(&"stream_chunk"));
    let broken = json!({"message": "[[tokens=20 fault=cut@5]] over REST"});
    let reply = post(replica, "/api/v1/chat", &broken).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(post(replica, "/api/v1/chat", &json!({})).await.status, 422);
    let text = metrics(replica).await;
    let mut kinds = BTreeMap::<_, usize>::new();
    // The others are the process's own, as every exporter has them.
    let of_jarvis = |name: &str| name.starts_with("jarvis_");
    for (name, family) in families(&text).into_iter().filter(|(name, _)| of_jarvis(name)) {
        assert!(!family.help.trim().is_empty(), "{name} has no help text:\n{text}");
        assert!(family.has_sample, "{name} has no sample:\n{text}");
        let right = match family.kind.as_str() {
            "counter" => name.ends_with("_total"),
            "histogram" => name.ends_with("_seconds"),
            // The released name of the hosts' slots is older than this rule.
            "gauge" => name == "jarvis_slots_total" || !name.ends_with("_total"),
            other => panic!("{name} has the type {other:?}:\n{text}"),
        };
        assert!(right, "{name} is a {} without its suffix", family.kind);
        *kinds.entry(family.kind).or_default() += 1;
    }
    // A turn, its requests, a continuation and the state of the hosts were recorded.
    for (kind, least) in [("counter", 5), ("histogram", 4), ("gauge", 6)] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= least), "{kinds:?}\n{text}");
    }
}
