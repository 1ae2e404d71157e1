// Vercel's AI SDK with its provider for compatible servers, used as its users do, against two replicas.
//
// Usage: sdk.mjs MODULES URL URL: runs every check at each replica in turn, and prints one JSON object a
// line: {"check": its name}.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [modules, ...urls] = process.argv.slice(2);
const load = createRequire(`${modules}/`);
const { createOpenAICompatible } = load("@ai-sdk/openai-compatible");
const { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } = load("ai");

const MODEL = "tinyllama";
const provider = (url) =>
  createOpenAICompatible({
    name: "jarvis", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true,
  });

async function whole(url) {
  const { text, finishReason, usage } = await generateText({
    model: provider(url)(MODEL), system: "be brief", prompt: "[[tokens=20]] go", temperature: 0,
  });
  assert.ok(text);
  assert.deepEqual([finishReason, usage.outputTokens], ["stop", 20]);
}

async function streamed(url) {
  const asked = { model: provider(url)(MODEL), prompt: "[[tokens=40 rate=40]] go", temperature: 0 };
  const { text } = await generateText(asked);
  const stream = streamText({ ...asked, onError: ({ error }) => assert.fail(String(error)) });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  assert.equal(pieces.join(""), text);
  assert.ok(pieces.length > 5, String(pieces.length));
  assert.equal((await stream.usage).outputTokens, 40);
}

async function tools(url) {
  const cities = [];
  const inputSchema = jsonSchema({ type: "object", properties: { city: { type: "string" } } });
  const weather = tool({
    description: "The weather", inputSchema, execute: async ({ city }) => (cities.push(city), "sunny"),
  });
  const { text } = await generateText({
    model: provider(url)(MODEL), prompt: "[[call=weather]] how is it?", tools: { weather },
    stopWhen: stepCountIs(3),
  });
  assert.deepEqual(cities, ["word"]);
  assert.ok(text);
}

async function choices(url) {
  const inputSchema = jsonSchema({
    type: "object", properties: { city: { type: "string" } }, required: ["city"],
    additionalProperties: false,
  });
  const weather = tool({ description: "The weather", inputSchema, strict: true });
  const asked = { model: provider(url)(MODEL), tools: { weather }, maxRetries: 0 };
  const { toolCalls } = await generateText({ ...asked, prompt: "[[call=weather]] how is it?" });
  assert.deepEqual(toolCalls.map((call) => call.input), [{ city: "word" }]);
  const wrong = generateText({ ...asked, prompt: "[[call=weather wrong]] how is it?" });
  await assert.rejects(wrong, { statusCode: 502 });
  for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
    await assert.rejects(generateText({ ...asked, prompt: "hi", toolChoice }), { statusCode: 400 });
  }
}

async function structured(url) {
  const schema = jsonSchema({
    type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
    required: ["name", "people"], additionalProperties: false,
  });
  const { output } = await generateText({
    model: provider(url)(MODEL), prompt: "a city", output: Output.object({ schema }),
  });
  assert.deepEqual(output, { name: "word", people: 7 });
}

async function embedded(url) {
  const { embeddings, usage } = await embedMany({
    model: provider(url).textEmbeddingModel(MODEL), values: ["one", "two"],
  });
  assert.equal(embeddings.length, 2);
  assert.ok(usage.tokens > 0);
}

async function errors(url) {
  const asked = generateText({ model: provider(url)("nope"), prompt: "hi", maxRetries: 0 });
  await assert.rejects(asked, { statusCode: 404 });
}

for (const check of [whole, streamed, tools, choices, structured, embedded, errors]) {
  for (const url of urls) await check(url);
  console.log(JSON.stringify({ check: check.name }));
}
