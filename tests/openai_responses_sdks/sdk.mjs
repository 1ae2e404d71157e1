// OpenAI's own package for Node asks for responses, as its users do, of two replicas.
//
// Usage: sdk.mjs MODULES checks TOKEN URL URL: runs every check at each replica in turn, and prints one
// JSON object a line: {"check": its name}. The second replica continues the answers that the first one
// began. TOKEN signs in a user who may begin two turns a minute.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const [modules, , token, ...urls] = process.argv.slice(2);
const OpenAI = createRequire(`${modules}/`)("openai");

const MODEL = "tinyllama";
// A PNG of one pixel.
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";
const client = (url, apiKey = "x") =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000 });
const other = (url) => client(urls.find((it) => it !== url));
const deltas = (events) =>
  events.filter((event) => event.type === "response.output_text.delta")
    .map((event) => event.delta).join("");

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

async function whole(url) {
  const { data: response, request_id } = await client(url).responses.create({
    model: MODEL, input: "[[tokens=20]] tell me", instructions: "be brief", temperature: 0,
    metadata: { a: "b" },
  }).withResponse();
  assert.equal(response.status, "completed");
  assert.ok(response.output_text && request_id);
  assert.equal(response.usage.output_tokens, 20);
  const again = await other(url).responses.retrieve(response.id);
  assert.deepEqual(again.output, response.output);
}

async function streamed(url) {
  const events = await all(await client(url).responses.create({
    model: MODEL, input: "[[tokens=40 rate=200]] go", temperature: 0, stream: true,
  }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.equal(events.at(-1).type, "response.completed");
  assert.equal(deltas(events), events.at(-1).response.output[0].content[0].text);
  for (const after of [0, 1, 5, events.length - 2]) {
    const rest = await all(await other(url).responses.retrieve(
      events[0].response.id, { stream: true, starting_after: after }));
    assert.deepEqual(rest, events.slice(after + 1));
  }
}

async function helper(url) {
  const stream = client(url).responses.stream({ model: MODEL, input: "[[tokens=10]] go" });
  let pieces = 0;
  stream.on("response.output_text.delta", () => (pieces += 1));
  const final = await stream.finalResponse();
  assert.ok(pieces > 0 && final.output_text);
}

async function background(url) {
  const asked = { model: MODEL, input: "[[tokens=60 rate=100]] go", temperature: 0, background: true };
  const response = await client(url).responses.create(asked);
  assert.equal(response.status, "queued");
  const events = await all(await other(url).responses.retrieve(
    response.id, { stream: true, starting_after: 0 }));
  assert.equal(events[0].sequence_number, 1);
  assert.equal((await client(url).responses.retrieve(response.id)).status, "completed");
  // A stream that its client leaves goes on at the other replica behind its last event.
  const stream = await client(url).responses.create({ ...asked, stream: true });
  const first = [];
  for await (const event of stream) if (first.push(event) === 9) break;
  const rest = await all(await other(url).responses.retrieve(
    first[0].response.id, { stream: true, starting_after: first.at(-1).sequence_number }));
  const both = [...first, ...rest];
  assert.deepEqual(both.map((event) => event.sequence_number), [...both.keys()]);
  assert.equal(deltas(both), deltas(events));
}

async function cancel_and_delete(url) {
  const response = await client(url).responses.create({
    model: MODEL, input: "[[tokens=2000 rate=20]] go", background: true,
  });
  assert.equal((await other(url).responses.cancel(response.id)).status, "cancelled");
  await client(url).responses.delete(response.id);
  await assert.rejects(other(url).responses.retrieve(response.id), OpenAI.NotFoundError);
}

async function conversation(url) {
  const first = await client(url).responses.create({ model: MODEL, input: "[[tokens=5]] one" });
  const second = await other(url).responses.create({
    model: MODEL, input: "[[tokens=5]] two", previous_response_id: first.id,
  });
  assert.ok(second.output_text);
  const items = [];
  for await (const item of client(url).responses.inputItems.list(second.id)) items.push(item);
  assert.deepEqual(items.map((item) => item.content[0].text), ["[[tokens=5]] two"]);
  const carried = await client(url).responses.create({
    model: MODEL,
    input: [{ role: "user", content: "[[tokens=5]] one" }, ...first.output,
      { role: "user", content: "[[tokens=5]] two" }],
  });
  assert.ok(carried.output_text);
}

async function conversations(url) {
  const [here, there] = [client(url), other(url)];
  const created = await here.conversations.create({
    metadata: { topic: "demo" }, items: [{ type: "message", role: "user", content: "Hello!" }],
  });
  assert.deepEqual(await there.conversations.retrieve(created.id), created);
  const changed = await there.conversations.update(created.id, { metadata: { topic: "more" } });
  assert.deepEqual(changed.metadata, { topic: "more" });
  const first = await here.responses.create({
    model: MODEL, input: "[[tokens=5]] one", conversation: created.id,
  });
  assert.deepEqual(first.conversation, { id: created.id });
  const events = await all(await there.responses.create({
    model: MODEL, input: "[[tokens=40 rate=200]] two", conversation: { id: created.id }, stream: true,
  }));
  const second = events.at(-1).response;
  assert.equal(deltas(events), second.output[0].content[0].text);
  const rest = await all(await here.responses.retrieve(second.id, { stream: true, starting_after: 3 }));
  assert.deepEqual(rest, events.slice(4));
  assert.deepEqual((await there.responses.retrieve(first.id)).output, first.output);
  await there.conversations.items.create(created.id, { items: [{ role: "user", content: "by the way" }] });
  const items = [];
  for await (const item of there.conversations.items.list(created.id, { order: "asc", limit: 2 })) {
    items.push(item);
  }
  assert.deepEqual(items.map((item) => item.content[0].text), ["Hello!", "[[tokens=5]] one",
    first.output_text, "[[tokens=40 rate=200]] two", deltas(events), "by the way"]);
  const again = await here.conversations.items.retrieve(items[2].id, { conversation_id: created.id });
  assert.deepEqual(again, items[2]);
  const deleted = await there.conversations.delete(created.id);
  assert.deepEqual([deleted.object, deleted.deleted], ["conversation.deleted", true]);
  await assert.rejects(here.responses.retrieve(second.id), OpenAI.NotFoundError);
  await assert.rejects(here.conversations.retrieve(created.id), OpenAI.NotFoundError);
}

async function json_schema(url) {
  const schema = {
    type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
    required: ["name", "people"], additionalProperties: false,
  };
  const parsed = await client(url).responses.parse({
    model: MODEL, input: "a city",
    text: { format: { type: "json_schema", name: "city", strict: true, schema } },
  });
  assert.deepEqual(JSON.parse(parsed.output_text), { name: "word", people: 7 });
}

async function tools(url) {
  const tool = { type: "function", name: "weather", strict: false,
    parameters: { type: "object", properties: { city: { type: "string" } } } };
  const reply = await client(url).responses.create({
    model: MODEL, tools: [tool], input: "[[call=weather]] how is it?",
  });
  const call = reply.output[0];
  assert.deepEqual([call.type, call.name, JSON.parse(call.arguments)],
    ["function_call", "weather", { city: "word" }]);
  const next = await other(url).responses.create({
    model: MODEL, tools: [tool], previous_response_id: reply.id,
    input: [{ type: "function_call_output", call_id: call.call_id, output: "sunny" }],
  });
  assert.ok(next.output_text);
}

async function strict_tools(url) {
  const tool = { type: "function", name: "weather", strict: true,
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"],
      additionalProperties: false } };
  const ask = (input, more) =>
    client(url).responses.parse({ model: MODEL, input, tools: [tool], ...more });
  const call = "[[call=weather]]";
  for (const [parallel_tool_calls, count] of [[true, 2], [false, 1]]) {
    const response = await ask(`${call} and ${call}`, { parallel_tool_calls });
    const given = response.output.map((item) => item.parsed_arguments);
    assert.deepEqual(given, Array(count).fill({ city: "word" }));
    assert.equal(response.tools[0].strict, true);
  }
  await raises(OpenAI.InternalServerError, "tool_call_invalid", null, () => ask("[[call=weather wrong]]"));
}

async function carried(url) {
  // The items of a helper's response are sent again as they came, and the next question is answered.
  const schema = {
    type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
    required: ["name", "people"], additionalProperties: false,
  };
  const format = { type: "json_schema", name: "city", strict: true, schema };
  const tool = { type: "function", name: "weather", strict: true,
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"],
      additionalProperties: false } };
  for (const [text, more] of [
    ["[[tokens=5]] hi", {}], ["a city", { text: { format } }],
    ["[[call=weather]] hi", { tools: [tool] }],
  ]) {
    const asked = { model: MODEL, input: text, ...more };
    const { responses } = client(url);
    for (const { output } of [
      await responses.parse(asked), await responses.stream(asked).finalResponse(),
    ]) {
      const results = output.filter((item) => item.type === "function_call").map((call) => (
        { type: "function_call_output", call_id: call.call_id, output: "sunny" }));
      assert.equal(results.length, more.tools ? 1 : 0);
      const input = [
        { role: "user", content: text }, ...output, ...results,
        { role: "user", content: "[[tokens=5]] and then?" },
      ];
      const next = await other(url).responses.create({ model: MODEL, input });
      assert.equal(next.status, "completed");
      assert.ok(next.output_text);
    }
  }
}

async function images(url) {
  const content = [
    { type: "input_text", text: "[[images]] what is it?" },
    { type: "input_image", detail: "auto", image_url: `data:image/png;base64,${PIXEL}` },
  ];
  const asked = { model: "vision", input: [{ role: "user", content }] };
  const digest = createHash("sha256").update(Buffer.from(PIXEL, "base64")).digest("hex");
  const response = await client(url).responses.create(asked);
  assert.equal(response.output_text, `1 images: ${digest}`);
  const events = await all(await client(url).responses.create({ ...asked, stream: true }));
  assert.equal(deltas(events), response.output_text);
}

async function raises(kind, code, param, call) {
  const error = await call().then(() => assert.fail(`no ${kind.name}`), (error) => error);
  assert.equal(error.constructor, kind, String(error));
  assert.deepEqual([error.code, error.param], [code, param]);
  return error;
}

async function errors(url) {
  for (const [{ key, ...changed }, kind, code, param] of [
    [{ model: "no" }, OpenAI.NotFoundError, "model_not_found", "model"],
    [{ conversation: "c" }, OpenAI.BadRequestError, "invalid_value", "conversation"],
    [{ input: "a b c d ".repeat(3_000) }, OpenAI.BadRequestError, "context_length_exceeded", "input"],
    [{ key: "sk-jarvis-wrong" }, OpenAI.AuthenticationError, "invalid_api_key", null],
  ]) {
    for (const stream of [false, true]) {
      await raises(kind, code, param,
        () => client(url, key).responses.create({ model: MODEL, input: "hi", ...changed, stream }));
    }
  }
}

async function rate_limit(url) {
  const ask = () => client(url, token).responses.create({ model: MODEL, input: "[[tokens=1]] hi" });
  if (url === urls[0]) {
    await ask();
    await ask();
  }
  const error = await raises(OpenAI.RateLimitError, "rate_limit_exceeded", null, ask);
  assert.ok(Number(error.headers.get("retry-after")) > 0);
}

for (const check of [whole, streamed, helper, background, cancel_and_delete, conversation, conversations,
  json_schema, tools, strict_tools, carried, images, errors, rate_limit]) {
  for (const url of urls) await check(url);
  console.log(JSON.stringify({ check: check.name }));
}
