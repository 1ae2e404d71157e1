// OpenAI's own package for Node, used as its users do, against two replicas.
//
// Usage: sdk.mjs MODULES checks TOKEN URL URL: runs every check at each replica in turn, and prints one
// JSON object a line: {"check": its name}. TOKEN signs in a user who may begin two turns a minute.
// Usage: sdk.mjs MODULES full URL URL: checks the error of two replicas whose queue is full, and prints the
// same.
// Usage: sdk.mjs MODULES read KEY QUESTION URL: reads the streamed completion with this idempotency key,
// prints {"begun": true} at its third chunk, and at its end {"text", "finish_reason", "usage"}.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";

const [modules, mode, first, ...rest] = process.argv.slice(2);
const OpenAI = createRequire(`${modules}/`)("openai");

const MODEL = "tinyllama";
// A PNG of one pixel.
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";
const digest = () => createHash("sha256").update(Buffer.from(PIXEL, "base64")).digest("hex");
const client = (url, apiKey = "not-needed") =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000 });
const question = (content) => [{ role: "user", content }];
const show = (line) => console.log(JSON.stringify(line));

async function models(url) {
  const listed = [];
  for await (const model of client(url).models.list()) listed.push(model.id);
  assert.ok(listed.includes("tinyllama:latest"), listed);
  assert.equal((await client(url).models.retrieve("tinyllama")).id, "tinyllama:latest");
}

async function whole(url) {
  const { data: reply, request_id } = await client(url)
    .chat.completions.create({
      model: MODEL, messages: question("[[tokens=20]] tell me"), temperature: 0, top_p: 1, user: "me",
      presence_penalty: 0.1, frequency_penalty: 0.1, n: 1,
    })
    .withResponse();
  assert.equal(reply.choices[0].message.role, "assistant");
  assert.equal(reply.choices[0].finish_reason, "stop");
  assert.equal(reply.usage.completion_tokens, 20);
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + 20);
  assert.ok(request_id);
}

async function streamed(url) {
  const asked = { model: MODEL, messages: question("[[tokens=40 rate=200]] go"), temperature: 0 };
  const reply = await client(url).chat.completions.create(asked);
  const stream = await client(url).chat.completions.create({
    ...asked, stream: true, stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, reply.choices[0].message.content);
  assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");
  assert.deepEqual(chunks.at(-1).usage, reply.usage);
  assert.ok(chunks.length > 10, String(chunks.length));
}

async function helper(url) {
  const stream = client(url).chat.completions.stream({
    model: MODEL, messages: question("[[tokens=10]] go"),
  });
  let pieces = 0;
  stream.on("content", () => (pieces += 1));
  const final = await stream.finalChatCompletion();
  assert.ok(pieces > 0 && final.choices[0].message.content);
}

async function stop_and_limit(url) {
  const create = (more) =>
    client(url).chat.completions.create({
      model: MODEL, messages: question("[[tokens=30]] tell me"), temperature: 0, ...more,
    });
  const text = (await create({})).choices[0].message.content;
  const word = text.split(/\s+/).filter(Boolean)[4];
  const stopped = (await create({ stop: [word, "never"] })).choices[0];
  assert.equal(stopped.message.content, text.slice(0, text.indexOf(word)));
  assert.equal(stopped.finish_reason, "stop");
  const cut = await create({ max_completion_tokens: 3 });
  assert.equal(cut.choices[0].finish_reason, "length");
  assert.equal(cut.usage.completion_tokens, 3);
}

async function seed(url) {
  const texts = [];
  for (const seed of [1, 1, 2]) {
    const reply = await client(url).chat.completions.create({
      model: MODEL, messages: question("[[tokens=20]] tell me"), temperature: 1, seed,
    });
    texts.push(reply.choices[0].message.content);
  }
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
}

async function conversation(url) {
  const messages = [{ role: "developer", content: "be brief" }, ...question("[[tokens=5]] one")];
  const create = () => client(url).chat.completions.create({ model: MODEL, messages });
  messages.push((await create()).choices[0].message, ...question("[[tokens=5]] two"));
  assert.ok((await create()).choices[0].message.content);
}

async function json_schema(url) {
  const schema = {
    type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
    required: ["name", "people"], additionalProperties: false,
  };
  const parsed = await client(url).chat.completions.parse({
    model: MODEL, messages: question("a city"),
    response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
  });
  assert.deepEqual(JSON.parse(parsed.choices[0].message.content), { name: "word", people: 7 });
}

async function tools(url) {
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const calls = [];
  const weather = ({ city }) => (calls.push(city), "sunny");
  const runner = client(url).chat.completions.runTools({
    model: MODEL, stream: true, messages: question("[[call=weather]] how is it?"),
    tools: [{ type: "function",
      function: { name: "weather", description: "", parse: JSON.parse, parameters, function: weather } }],
  });
  assert.ok(await runner.finalContent());
  assert.deepEqual(calls, ["word"]);
}

async function strict_tools(url) {
  const parameters = {
    type: "object", properties: { city: { type: "string" } }, required: ["city"],
    additionalProperties: false,
  };
  const tool = { type: "function", function: { name: "weather", strict: true, parameters } };
  const ask = (text, more) =>
    client(url).chat.completions.parse({
      model: MODEL, messages: question(text), tools: [tool], ...more,
    });
  const call = "[[call=weather]]";
  for (const [more, count] of [[{}, 2], [{ parallel_tool_calls: false }, 1]]) {
    const { message } = (await ask(`${call} and ${call}`, more)).choices[0];
    const given = message.tool_calls.map((it) => it.function.parsed_arguments);
    assert.deepEqual(given, Array(count).fill({ city: "word" }));
  }
  await raises(OpenAI.InternalServerError, 502, "tool_call_invalid", null,
    () => ask("[[call=weather wrong]]"));
  for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
    await raises(OpenAI.BadRequestError, 400, "unsupported_value", "tool_choice",
      () => ask(call, { tool_choice }));
  }
}

async function carried(url) {
  // The message of a helper is sent again as it came, and the next question is answered.
  const { completions } = client(url).chat;
  const schema = {
    type: "object", properties: { name: { type: "string" }, people: { type: "integer" } },
    required: ["name", "people"], additionalProperties: false,
  };
  const city = { type: "json_schema", json_schema: { name: "city", strict: true, schema } };
  const parameters = {
    type: "object", properties: { city: { type: "string" } }, required: ["city"],
    additionalProperties: false,
  };
  const tool = { type: "function", function: { name: "weather", strict: true, parameters } };
  for (const [text, more] of [
    ["[[tokens=5]] hi", {}], ["a city", { response_format: city }],
    ["[[call=weather]] hi", { tools: [tool] }],
  ]) {
    const asked = { model: MODEL, messages: question(text), ...more };
    const replies = [
      await completions.parse(asked), await completions.stream(asked).finalChatCompletion(),
    ];
    for (const { message } of replies.map((reply) => reply.choices[0])) {
      const results = (message.tool_calls ?? []).map((call) => (
        { role: "tool", tool_call_id: call.id, content: "sunny" }));
      assert.equal(results.length, more.tools ? 1 : 0);
      const messages = [
        ...question(text), message, ...results, ...question("[[tokens=5]] and then?"),
      ];
      const next = await completions.create({ model: MODEL, messages });
      assert.ok(next.choices[0].message.content);
      const streamed = await completions.stream({ ...asked, messages }).finalChatCompletion();
      assert.ok(streamed.choices[0].message.content);
    }
  }
}

async function embedded(url) {
  // The package requests base64 unless it is told otherwise, and decodes it.
  const asked = { model: MODEL, input: ["one", "two"] };
  const coded = await client(url).embeddings.create(asked);
  const plain = await client(url).embeddings.create({ ...asked, encoding_format: "float" });
  assert.deepEqual(coded.data.map((item) => item.index), [0, 1]);
  const single = plain.data.map((item) => item.embedding.map(Math.fround));
  assert.deepEqual(coded.data.map((item) => [...item.embedding]), single);
  assert.ok(coded.usage.total_tokens > 0);
  const short = await client(url).embeddings.create({ model: MODEL, input: "one", dimensions: 4 });
  assert.equal(short.data[0].embedding.length, 4);
}

async function images(url) {
  const image = { type: "image_url", image_url: { url: `data:image/png;base64,${PIXEL}` } };
  const content = [{ type: "text", text: "[[images]] what is it?" }, image];
  const messages = [{ role: "user", content }];
  const reply = await client(url).chat.completions.create({ model: "vision", messages });
  assert.equal(reply.choices[0].message.content, `1 images: ${digest()}`);
  let text = "";
  const stream = await client(url).chat.completions.create({ model: "vision", messages, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  assert.equal(text, reply.choices[0].message.content);
}

async function raises(kind, status, code, param, call) {
  const error = await call().then(
    () => assert.fail(`no ${kind.name}`),
    (error) => error,
  );
  assert.equal(error.constructor, kind, String(error));
  assert.deepEqual([error.status, error.code, error.param], [status, code, param]);
  assert.ok(error.requestID);
  return error;
}

async function errors(url) {
  const ask = ({ key, ...changed }) => () =>
    client(url, key).chat.completions.create({ model: MODEL, messages: question("hi"), ...changed });
  for (const stream of [false, true]) {
    await raises(OpenAI.NotFoundError, 404, "model_not_found", "model", ask({ model: "no", stream }));
    await raises(OpenAI.BadRequestError, 400, "unsupported_value", "n", ask({ n: 2, stream }));
    await raises(OpenAI.BadRequestError, 400, "context_length_exceeded", "messages",
      ask({ messages: question("long ".repeat(100_000)), stream }));
    await raises(OpenAI.AuthenticationError, 401, "invalid_api_key", null,
      ask({ key: "sk-jarvis-wrong", stream }));
  }
}

async function queue_full(url) {
  for (const stream of [false, true]) {
    for (const ask of [
      () => client(url).chat.completions.create({ model: MODEL, messages: question("hi"), stream }),
      () => client(url).responses.create({ model: MODEL, input: "hi", stream }),
    ]) {
      const error = await raises(OpenAI.InternalServerError, 503, "queue_full", null, ask);
      assert.ok(Number(error.headers.get("retry-after")) > 0);
    }
  }
}

async function rate_limit(url) {
  const ask = () =>
    client(url, first).chat.completions.create({ model: MODEL, messages: question("[[tokens=1]] hi") });
  if (url === rest[0]) {
    await ask();
    await ask();
  }
  const error = await raises(OpenAI.RateLimitError, 429, "rate_limit_exceeded", null, ask);
  assert.ok(Number(error.headers.get("retry-after")) > 0);
}

async function leaves(url) {
  // A stream that its client leaves is no error of the next request.
  const stream = await client(url).chat.completions.create({
    model: MODEL, messages: question("[[tokens=1000 rate=50]] go"), stream: true,
  });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  await whole(url);
}

const CHECKS = [models, whole, streamed, helper, stop_and_limit, seed, conversation, json_schema, tools, strict_tools,
  carried, images, embedded, errors, rate_limit, leaves];

if (mode === "read") {
  const [text, url] = rest;
  const stream = await client(url).chat.completions.create(
    {
      model: MODEL, messages: question(text), temperature: 0, stream: true,
      stream_options: { include_usage: true },
    },
    { headers: { "Idempotency-Key": first } },
  );
  let [number, answer, finish_reason, usage] = [0, "", null, null];
  for await (const chunk of stream) {
    if (number === 2) show({ begun: true });
    number += 1;
    answer += chunk.choices[0]?.delta.content ?? "";
    finish_reason = chunk.choices[0]?.finish_reason ?? finish_reason;
    usage = chunk.usage ?? usage;
  }
  show({ text: answer, finish_reason, usage });
} else {
  const [checks, urls] = mode === "full" ? [[queue_full], [first, ...rest]] : [CHECKS, rest];
  for (const check of checks) {
    for (const url of urls) await check(url);
    show({ check: check.name });
  }
}
