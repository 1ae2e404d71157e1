//! OpenAI's own packages ask two replicas for responses, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use support::sdks::Sdk;

const FOLDER: &str = "openai_responses_sdks";

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged_with_responses() {
    let checks = "whole streamed helper asynchronous background cancel_and_delete conversation \
        conversations tools_in_conversation json_schema tools strict_tools carried images errors \
        rate_limit";
    Sdk::Python.passes_signed_in(FOLDER, checks).await;
    Sdk::Python.runs_the_blocks_of("OPENAI.md", "A response").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_open_responses_compliance_suite_have_what_its_schema_requires() {
    let checks = "text system_prompt tool image conversation chained round_trip refused \
        structured incomplete failed";
    Sdk::Python.passes("open_responses", checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged_with_responses() {
    let checks = "whole streamed helper background cancel_and_delete conversation conversations \
        json_schema tools strict_tools carried images errors rate_limit";
    Sdk::Node.passes_signed_in(FOLDER, checks).await;
}
