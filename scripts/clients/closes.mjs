// Runs Node's `ws` against a running jarvis: it has to see its own close code.
//
// Usage: closes.mjs URL FOLDER-OF-NODE-MODULES. Prints one JSON object a line:
// {"client", "close", "tries", "seen": {code: times}}. Every other try closes in the middle of an
// answer, the others after it.

import { createRequire } from "node:module";

const [url, modules] = process.argv.slice(2);
const { WebSocket } = createRequire(`${modules}/`)("ws");

const TRIES = 48;
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

for (const code of [1000, OWN, null]) {
  const seen = {};
  for (let number = 0; number < TRIES; number += 1) {
    const key = await attempt(code, number % 2 ? "stream_chunk" : "stream_end");
    seen[key] = (seen[key] ?? 0) + 1;
  }
  console.log(JSON.stringify({ client: "ws", close: code, tries: TRIES, seen }));
}
