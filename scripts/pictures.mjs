// Takes the pictures of the README from a running service:
//
//   node scripts/pictures.mjs http://127.0.0.1:10200/ "$(jarvis token --user ada --ttl 1h)"
//
// (a test runs it so: cargo test --workspace --test pictures -- --ignored the_pictures_of_the_page).
//
// It imports conversations into the account of the token's user, opens the page in Chromium, signs in and asks
// a question. It waits until the answer was continued by another replica: somebody has to kill the one that
// writes it, as the test does. Then it takes docs/page-light.png and docs/page-dark.png.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const { chromium } = createRequire(`${root}web/`)("playwright-core");
const [base, token] = process.argv.slice(2);

const TITLES = [
  "Lifetimes in Rust",
  "A week in Lisbon, by tram",
  "A dark night sky",
  "Sourdough",
];
const QUESTION = "How can a queue stay fair when one person opens forty sessions?";

const line = (value) => `${JSON.stringify(value)}\n`;
const time = (minutes) => new Date(Date.now() - minutes * 60_000).toISOString();
function conversation(title, question, answer, minutes) {
  const messages = [
    { type: "message", role: "user", content: question, timestamp: time(minutes) },
    {
      type: "message", role: "assistant", content: answer, timestamp: time(minutes - 1), model: "qwen3:8b",
      status: "complete", finish_reason: "stop", usage: { prompt_tokens: 31, completion_tokens: 164 },
    },
  ];
  return line({ type: "session", title }) + messages.map(line).join("") + line({ type: "session_end", messages: messages.length });
}
const lines = [
  line({ type: "export", version: 1 }),
  ...TITLES.map((title, index) => conversation(title, title, "Here it is.", 600 - 60 * index)),
  line({ type: "end", sessions: TITLES.length, messages: 2 * TITLES.length }),
].join("");
async function call(method, path, body, type = "application/json") {
  const headers = { authorization: `Bearer ${token}`, "content-type": type };
  const response = await fetch(new URL(`/api/v1/chat/${path}`, base), { method, headers, body });
  if (!response.ok) throw new Error(await response.text());
  return response;
}
await call("POST", "import", lines, "application/x-ndjson");
const { sessions } = await (await call("GET", "sessions")).json();
const idOf = (title) => sessions.find((session) => session.title === title).session_id;
await call("PATCH", `sessions/${idOf(TITLES[1])}`, JSON.stringify({ pinned: true }));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
const page = await browser.newPage({
  viewport: { width: 1080, height: 760 },
  deviceScaleFactor: 2,
  reducedMotion: "reduce",
});
await page.goto(base);
await page.locator(".account").click();
await page.getByLabel("Token or API key").fill(token);
await page.keyboard.press("Enter");
await page.getByRole("heading", { name: /Signed in as/ }).waitFor();
await page.keyboard.press("Escape");
await page.locator("#question").fill(QUESTION);
await page.keyboard.press("Enter");
await page.locator(".facts", { hasText: "continued after an interruption" }).waitFor({ timeout: 60_000 });
// In another conversation an answer is being written. Nobody waits for its reply.
const long = { session_id: idOf(TITLES[2]), message: "[[tokens=6000]] at length", stream: true };
await call("POST", "", JSON.stringify(long));
const named = (await (await call("GET", "sessions")).json()).sessions;
const asked = named.find(({ title }) => title === QUESTION);
await call("PATCH", `sessions/${asked.session_id}`, JSON.stringify({ title: "A fair queue" }));
await page.reload();
await page.waitForSelector(".hljs-keyword");
await page.waitForSelector(".badge.running");
await page.mouse.move(700, 20);
await page.locator("#question").blur();
const fits = await page.evaluate(() => {
  const { scrollHeight, clientHeight } = document.querySelector(".scroller");
  return scrollHeight <= clientHeight;
});
if (!fits) throw new Error("the conversation does not fit into the picture");
for (const colorScheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme });
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${root}docs/page-${colorScheme}.png` });
}
await browser.close();
process.exit(0);
