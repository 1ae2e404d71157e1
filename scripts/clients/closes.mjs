// Runs Node's `ws`, and `wscat` in a terminal, against a running jarvis: each has to see its own close
// code.
//
// Usage: closes.mjs URL FOLDER-OF-NODE-MODULES. Prints one JSON object a line:
// {"client", "close", "tries", "seen": {code: times}}. Every other try of `ws` closes in the middle of
// an answer, the others after it.

import { spawn } from "node:child_process";
import { createRequire } from "node:module";

const [url, modules] = process.argv.slice(2);
const { WebSocket } = createRequire(`${modules}/`)("ws");

const TRIES = 48;
const TYPED_TRIES = 12;
const OWN = 4999;
const CHAT = JSON.stringify({ type: "chat", message: "[[tokens=20]] hello", max_tokens: 20 });

function attempt(code, until) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url);
    let closing = false;
    const limit = setTimeout(() => resolve("timeout"), 30_000);
    socket.on("open", () => socket.send(CHAT));
    socket.on("message", (text) => {
      if (closing || JSON.parse(text).type !== until) return;
      closing = true;
      code === null ? socket.close() : socket.close(code, "done");
    });
    socket.on("error", () => {});
    socket.on("close", (seen, reason) => {
      clearTimeout(limit);
      // The reason comes back with the code.
      resolve(code === null || String(reason) === "done" ? String(seen) : `${seen} without its reason`);
    });
  });
}

/** Types a question and then the end into `wscat`, which writes only to a terminal: `script` is one. */
function typed(code) {
  return new Promise((resolve) => {
    const wscat = `${process.execPath} ${modules}/.bin/wscat --no-color --slash --connect ${url}`;
    const child = spawn("script", ["-qefc", wscat, "/dev/null"]);
    const steps = [["Connected", CHAT], ["stream_end", `/close ${code}`]];
    let printed = "";
    const limit = setTimeout(() => child.kill(), 30_000);
    child.stdout.on("data", (data) => {
      printed += data;
      if (steps.length && printed.includes(steps[0][0])) child.stdin.write(`${steps.shift()[1]}\n`);
    });
    child.on("error", () => {});
    child.on("close", () => {
      clearTimeout(limit);
      resolve(/Disconnected \(code: (\d+)/.exec(printed)?.[1] ?? "nothing");
    });
  });
}

async function count(client, close, tries, attempt) {
  const seen = {};
  for (let number = 0; number < tries; number += 1) {
    const key = await attempt(number);
    seen[key] = (seen[key] ?? 0) + 1;
  }
  console.log(JSON.stringify({ client, close, tries, seen }));
}

for (const code of [1000, OWN, null]) {
  await count("ws", code, TRIES, (number) => attempt(code, number % 2 ? "stream_chunk" : "stream_end"));
}
for (const code of [1000, OWN]) await count("wscat", code, TYPED_TRIES, () => typed(code));
