// Takes the pictures of the README from a running service:
//
//   node scripts/pictures.mjs http://127.0.0.1:10200/ "$(jarvis token --user ada --ttl 1h)"
//
// (a test runs it so: cargo test --workspace --test pictures -- --ignored the_pictures_of_the_page).
//
// It imports conversations into the account of the token's user, opens the page in Chromium, signs in and
// takes docs/page-light.png and docs/page-dark.png.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const { chromium } = createRequire(`${root}web/`)("playwright-core");
const [base, token] = process.argv.slice(2);

const TITLES = [
  "Rust lifetimes in an iterator",
  "A week in Lisbon, by tram",
  "Why is the sky dark at night?",
  "Sourdough at 75 % hydration",
];
const QUESTION = "How can a queue stay fair when one person opens forty sessions?";
const ANSWER = `Give every *user* a share, not every session. Each ticket gets a **virtual start time**: the moment when its user's previous ticket would end.

1. A new ticket starts where the user's last one ends, or now.
2. The smallest start time goes first, whoever it belongs to.

\`\`\`rust
/// Returns the ticket that begins next.
fn next(&self) -> Option<&Ticket> {
    self.waiting.iter().min_by_key(|ticket| ticket.start)
}
\`\`\`

Forty sessions of one user then queue behind each other, and a second user waits for one turn at most.`;

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
  conversation("A fair queue", QUESTION, ANSWER, 5),
  line({ type: "end", sessions: TITLES.length + 1, messages: 2 * TITLES.length + 2 }),
].join("");
const imported = await fetch(new URL("/api/v1/chat/import", base), {
  method: "POST",
  headers: { authorization: `Bearer ${token}`, "content-type": "application/x-ndjson" },
  body: lines,
});
if (!imported.ok) throw new Error(await imported.text());

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
for (const colorScheme of ["light", "dark"]) {
  const context = await browser.newContext({ colorScheme, viewport: { width: 1200, height: 760 } });
  const page = await context.newPage();
  await page.goto(base);
  await page.locator(".account").click();
  await page.getByLabel("Token or API key").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: /Signed in as/ }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "A fair queue" }).first().click();
  await page.waitForSelector(".hljs-keyword");
  await page.mouse.move(900, 20);
  await page.locator("#question").focus();
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${root}docs/page-${colorScheme}.png` });
  await context.close();
}
await browser.close();
