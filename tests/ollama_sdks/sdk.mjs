// Ollama's own package for Node, used as its users do, against two replicas.
//
// Usage: sdk.mjs MODULES checks TOKEN URL URL: runs every check at each replica in turn, and prints one
// JSON object a line: {"check": its name}. TOKEN signs in a user who may begin two turns a minute.
// Usage: sdk.mjs MODULES full URL URL: checks the error of two replicas whose queue is full, and prints the
// same.
// Usage: sdk.mjs MODULES read KEY QUESTION URL: reads the streamed chat with this idempotency key,
// prints {"begun": true} at its third part, and at its end {"text", "done_reason", "eval_count",
// "prompt_eval_count"}.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const [modules, mode, first, ...rest] = process.argv.slice(2);
const { Ollama } = createRequire(`${modules}/`)("ollama");

const MODEL = "tinyllama";
// A PNG of one pixel.
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";
const digest = () => createHash("sha256").update(Buffer.from(PIXEL, "base64")).digest("hex");
const client = (url, key = "ollama") =>
  new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });
const question = (content) => [{ role: "user", content }];
const show = (line) => console.log(JSON.stringify(line));

async function all(stream) {
  const parts = [];
  for await (const part of await stream) parts.push(part);
  return parts;
}

async function models(url) {
  const listed = (await client(url).list()).models;
  assert.ok(listed.some((model) => model.name === "tinyllama:latest"), JSON.stringify(listed));
  assert.equal(listed[0].details.family, "llama");
  const described = await client(url).show({ model: MODEL });
  assert.deepEqual(described.capabilities, ["completion"]);
  assert.ok((await client(url).version()).version);
}

async function whole(url) {
  const reply = await client(url).chat({
    model: MODEL, messages: question("[[tokens=20]] tell me"), options: { temperature: 0 },
    keep_alive: "5m",
  });
  assert.equal(reply.model, MODEL);
  assert.equal(reply.message.role, "assistant");
  assert.deepEqual([reply.done, reply.done_reason, reply.eval_count], [true, "stop", 20]);
  assert.ok(reply.prompt_eval_count > 0 && reply.total_duration > 0);
  assert.ok(Array.isArray((await client(url).ps()).models));
}

async function streamed(url) {
  const asked = {
    model: MODEL, messages: question("[[tokens=40 rate=200]] go"), options: { temperature: 0 },
  };
  const reply = await client(url).chat(asked);
  const parts = await all(client(url).chat({ ...asked, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), reply.message.content);
  assert.equal(parts.at(-1).done, true);
  assert.equal(parts.at(-1).eval_count, reply.eval_count);
  assert.ok(parts.length > 10, String(parts.length));
}

async function generated(url) {
  const asked = {
    model: MODEL, prompt: "[[tokens=10]] go", system: "be brief", options: { temperature: 0 },
  };
  const reply = await client(url).generate(asked);
  assert.equal(reply.eval_count, 10);
  const parts = await all(client(url).generate({ ...asked, stream: true }));
  assert.equal(parts.map((part) => part.response).join(""), reply.response);
  const unloaded = await client(url).generate({ model: MODEL, prompt: "", keep_alive: 0 });
  assert.deepEqual([unloaded.response, unloaded.done_reason], ["", "unload"]);
}

async function options(url) {
  const ask = (options) =>
    client(url).chat({
      model: MODEL, messages: question("[[tokens=30]] tell me"),
      options: { temperature: 0, ...options },
    });
  const text = (await ask({ num_ctx: 64 })).message.content;
  const word = text.split(/\s+/)[4];
  const stopped = await ask({ stop: [word, "never"] });
  assert.equal(stopped.message.content, text.slice(0, text.indexOf(word)));
  const cut = await ask({ num_predict: 3 });
  assert.deepEqual([cut.done_reason, cut.eval_count], ["length", 3]);
  const texts = [];
  for (const seed of [1, 1, 2]) texts.push((await ask({ temperature: 1, seed })).message.content);
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
}

async function formatted(url) {
  const schema = { type: "object", properties: { age: { type: "integer", minimum: 3 } } };
  const reply = await client(url).chat({ model: MODEL, messages: question("hi"), format: schema });
  assert.deepEqual(JSON.parse(reply.message.content), { age: 3 });
}

async function tools(url) {
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const weather = { type: "function", function: { name: "weather", description: "d", parameters } };
  const messages = question("[[call=weather]] how is it?");
  const { message } = await client(url).chat({ model: MODEL, messages, tools: [weather] });
  assert.equal(message.tool_calls[0].function.name, "weather");
  assert.equal(typeof message.tool_calls[0].function.arguments.city, "string");
  const parts = await all(client(url).chat({ model: MODEL, messages, tools: [weather], stream: true }));
  const calls = parts.flatMap((part) => part.message.tool_calls ?? []);
  const given = message.tool_calls.map((call) => call.function.arguments);
  assert.deepEqual(calls.map((call) => call.function.arguments), given);
  messages.push(message, { role: "tool", tool_name: "weather", content: "[[tokens=5]] rain" });
  const reply = await client(url).chat({ model: MODEL, messages, tools: [weather] });
  assert.ok(reply.message.content);
}

async function images(url) {
  const messages = [{ role: "user", content: "[[images]] what is it?", images: [PIXEL] }];
  const reply = await client(url).chat({ model: "vision", messages });
  assert.equal(reply.message.content, `1 images: ${digest()}`);
  const parts = await all(client(url).chat({ model: "vision", messages, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), reply.message.content);
}

async function embedded(url) {
  const reply = await client(url).embed({ model: MODEL, input: ["one", "two"] });
  assert.equal(reply.embeddings.length, 2);
  const old = await client(url).embeddings({ model: MODEL, prompt: "one" });
  assert.equal(old.embedding.length, reply.embeddings[0].length);
}

async function raises(status, words, call) {
  const error = await call().then((reply) => (reply[Symbol.asyncIterator] ? all(reply) : reply)).then(
    () => assert.fail(`no error: ${status} ${words}`),
    (error) => error,
  );
  assert.equal(error.name, "ResponseError", String(error));
  assert.equal(error.status_code, status, String(error));
  assert.ok(error.message.includes(words), error.message);
}

async function errors(url) {
  const ask = (changed, key) => () =>
    client(url, key).chat({ model: MODEL, messages: question("hi"), ...changed });
  for (const stream of [false, true]) {
    await raises(404, "model 'no' not found", ask({ model: "no", stream }));
    await raises(400, "must be a number", ask({ options: { top_p: "x" }, stream }));
    await raises(400, "too long", ask({ messages: question("long ".repeat(100_000)), stream }));
    // The host alone can count these: the error comes after the turn was accepted.
    const long = question(`[[tokens=1]] ${"a b c d ".repeat(3_000)}`);
    await raises(400, "too long", ask({ messages: long, stream }));
    await raises(401, "", ask({ stream }, "sk-jarvis-wrong"));
  }
  await raises(403, "operator", () => client(url).pull({ model: "other" }));
  await raises(404, "model 'no' not found", () => client(url).show({ model: "no" }));
}

async function queue_full(url) {
  for (const stream of [false, true]) {
    await raises(503, "server busy",
      () => client(url).chat({ model: MODEL, messages: question("hi"), stream }));
    await raises(503, "server busy", () => client(url).generate({ model: MODEL, prompt: "hi", stream }));
  }
}

async function rate_limit(url) {
  const ask = () =>
    client(url, first).chat({ model: MODEL, messages: question("[[tokens=1]] hi") });
  if (url === rest[0]) {
    await ask();
    await ask();
  }
  await raises(429, "", ask);
}

async function error_in_a_stream(url) {
  if (url !== rest[0]) return; // It takes seconds until a host is given up.
  const stream = await client(url).chat({
    model: MODEL, messages: question("[[tokens=500 fault=cut@3!]] go"), stream: true,
  });
  let seen = 0;
  await assert.rejects(async () => {
    for await (const part of stream) seen += part.message.content.length;
  }, /broke off/);
  assert.ok(seen > 0);
}

async function leaves(url) {
  // A stream that its client leaves is no error of the next request.
  const leaving = client(url);
  const stream = await leaving.chat({
    model: MODEL, messages: question("[[tokens=1000 rate=50]] go"), stream: true,
  });
  await assert.rejects(async () => {
    for await (const part of stream) if (part.message.content) leaving.abort();
  }, { name: "AbortError" });
  await whole(url);
}

const CHECKS = [models, whole, streamed, generated, options, formatted, tools, images, embedded, errors, rate_limit,
  error_in_a_stream, leaves];

if (mode === "read") {
  const [text, url] = rest;
  const reading = new Ollama({ host: url, headers: { "Idempotency-Key": first } });
  const stream = await reading.chat({
    model: MODEL, messages: question(text), stream: true, options: { temperature: 0 },
  });
  let [number, answer, last] = [0, "", null];
  for await (const part of stream) {
    if (number === 2) show({ begun: true });
    number += 1;
    answer += part.message.content;
    last = part;
  }
  const { done_reason, eval_count, prompt_eval_count } = last;
  show({ text: answer, done_reason, eval_count, prompt_eval_count });
} else {
  const [checks, urls] = mode === "full" ? [[queue_full], [first, ...rest]] : [CHECKS, rest];
  for (const check of checks) {
    for (const url of urls) await check(url);
    show({ check: check.name });
  }
}
