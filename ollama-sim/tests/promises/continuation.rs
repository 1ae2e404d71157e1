//! A raw prompt with the answer so far continues without a seam.

use ollama_sim::{Config, script_answer};
use serde_json::{Value, json};

use crate::support::{World, ask, plain, with, world};

async fn go_on(
    world: &World,
    model: &str,
    prompt: String,
    options: &Value,
) -> crate::support::Streamed {
    let request = json!({"model": model, "prompt": prompt, "raw": true, "options": options});
    world.generate(&request).await
}

fn cuts(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()])
}

#[tokio::test]
async fn a_continued_prefix_equals_the_uninterrupted_answer() {
    let world = plain().await;
    for (message, seed) in [("first", 0), ("second [[tokens=90]]", 5)] {
        let options = json!({"seed": seed});
        let request = with(ask(message), &json!({"options": options}));
        let whole = world.chat(&request).await.answer();
        let prompt = world.rendered(&request).await;
        for cut in cuts(&whole) {
            let prefix = &whole[..cut];
            let rest = go_on(&world, "tinyllama", format!("{prompt}{prefix}"), &options).await;
            assert_eq!(format!("{prefix}{}", rest.answer()), whole, "cut at {cut}");
            assert_eq!(rest.last["done_reason"], "stop");
        }
    }
}

#[tokio::test]
async fn a_continuation_with_the_tokens_that_are_left_ends_where_the_uninterrupted_one_does() {
    let world = plain().await;
    let limit = 40;
    let request = with(ask("limited"), &json!({"options": {"num_predict": limit}}));
    let whole = world.chat(&request).await;
    let prompt = world.rendered(&request).await;
    for cut in cuts(&whole.answer()) {
        let whole_answer = whole.answer();
        let prefix = whole_answer[..cut].trim_end();
        let so_far = format!("{prompt}{prefix}");
        let probe = go_on(&world, "tinyllama", so_far.clone(), &json!({"num_predict": 1})).await;
        let used = probe.figure("prompt_eval_count") - whole.figure("prompt_eval_count");
        if used == limit {
            continue;
        }
        let left = json!({"num_predict": limit - used});
        let rest = go_on(&world, "tinyllama", so_far, &left).await;
        assert_eq!(format!("{prefix}{}", rest.answer()), whole_answer);
        assert_eq!(rest.last["done_reason"], "length");
        assert_eq!(rest.figure("eval_count"), limit - used);
    }
}

#[tokio::test]
async fn a_stop_text_across_the_cut_still_stops() {
    let world = plain().await;
    let request = ask("[[say]]alpha beta gamma delta");
    let prompt = world.rendered(&request).await;
    let rest =
        go_on(&world, "tinyllama", prompt + "alpha beta", &json!({"stop": ["ta gam"]})).await;
    assert_eq!(rest.answer(), "");
    assert_eq!(rest.last["done_reason"], "stop");
}

#[tokio::test]
async fn a_text_that_is_no_prefix_continues_at_its_own_length() {
    let world = plain().await;
    let request = ask("[[say]]0123é56789");
    let prompt = world.rendered(&request).await;
    for (prefix, wanted) in [("xxxx", "é56789"), ("xxxxx", "é56789"), ("é----------", "")] {
        let rest = go_on(&world, "tinyllama", format!("{prompt}{prefix}"), &json!({})).await;
        assert_eq!(rest.answer(), wanted, "{prefix}");
    }
}

#[tokio::test]
async fn a_model_that_reasons_can_be_continued_too() {
    let config = Config { models: vec!["think".into()], ..Config::default() };
    let world = world(config).await;
    let request = with(ask("hm"), &json!({"model": "think"}));
    let answer = script_answer("think", "hm", None, 64);
    let silent = with(request.clone(), &json!({"think": false}));
    let prompt = world.rendered(&silent).await;
    for cut in cuts(&answer).step_by(5) {
        let so_far = format!("{prompt}{}", &answer[..cut]);
        let rest = go_on(&world, "think", so_far, &json!({})).await;
        assert_eq!(rest.answer(), answer[cut..]);
    }
    let aloud = world.rendered(&request).await;
    let raw = go_on(&world, "think", aloud, &json!({})).await.answer();
    assert!(raw.starts_with("<think>\n"));
    assert!(raw.ends_with(&format!("</think>\n\n{answer}")));
}

#[tokio::test]
async fn an_alias_continues_what_its_origin_began() {
    let config = Config { aliases: vec!["other=tinyllama".into()], ..Config::default() };
    let world = world(config).await;
    let whole = world.chat(&ask("alias")).await.answer();
    let prompt = world.rendered(&ask("alias")).await;
    let cut = whole.floor_char_boundary(whole.len() / 2);
    let so_far = prompt + &whole[..cut];
    let rest = go_on(&world, "other", so_far, &json!({})).await;
    assert_eq!(rest.answer(), whole[cut..]);
}

#[tokio::test]
async fn a_last_message_of_the_assistant_is_closed_and_not_continued() {
    let world = plain().await;
    let messages = json!({"messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "half an ans"},
    ]});
    let prompt = world.rendered(&with(ask(""), &messages)).await;
    assert!(prompt.ends_with("half an ans<|im_end|>\n<|im_start|>assistant\n"));
}
