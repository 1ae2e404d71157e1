// The shared parts of the scripts: a browser, a page of the service, and words for the test that runs them.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const web = fileURLToPath(new URL("../../web/", import.meta.url));
const require = createRequire(web);
const { chromium } = require("playwright-core");

/** The time after which a promise counts as broken, in milliseconds. */
export const LIMIT = 30_000;

/** The base address of the service, and what follows it on the command line. */
export const [base, ...rest] = process.argv.slice(2);

/** An image of one pixel, as a file that is chosen. */
export const pixel = {
  name: "pixel.png",
  mimeType: "image/png",
  buffer: Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==",
    "base64",
  ),
};

/** Reports to the test: one line of JSON. */
export function report(what) {
  console.log(JSON.stringify(what));
}

/** Fails with a text where something does not hold. */
export function check(holds, text) {
  if (!holds) throw new Error(text);
}

/** Checks that two texts are the same, and shows where they differ. */
export function same(got, wanted, what) {
  if (got === wanted) return;
  let at = 0;
  while (got?.[at] === wanted?.[at]) at += 1;
  const part = (text) => JSON.stringify(String(text).slice(Math.max(0, at - 20), at + 40));
  throw new Error(`${what}: at ${at} ${part(got)} instead of ${part(wanted)}`);
}

/** Runs `script` with a browser, and ends with its outcome. An error of the page is a failure. */
export async function run(script, options = {}) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"],
  });
  const errors = [];
  try {
    const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
    context.setDefaultTimeout(LIMIT);
    context.on("page", (page) => page.on("pageerror", (error) => errors.push(String(error))));
    await script(context, browser);
    check(errors.length === 0, `errors of the page: ${errors.join("; ")}`);
  } finally {
    await browser.close();
  }
}

/** Opens a page and waits until it is connected. */
export async function open(context, address = base) {
  const page = await context.newPage();
  await page.goto(address);
  await connected(page);
  return page;
}

export async function connected(page) {
  await page.waitForSelector(".light.open");
}

/** Writes a question and sends it. */
export async function ask(page, text) {
  await page.fill("#question", text);
  await page.press("#question", "Enter");
}

/** Waits until so many answers have this status. */
export async function until(page, status, count = 1, timeout = LIMIT) {
  await page.waitForFunction(
    ([status, count]) => document.querySelectorAll(`.answer.${status}`).length >= count,
    [status, count],
    { timeout },
  );
}

/** The text of the last answer, as it is shown. */
export function shown(page) {
  return page.evaluate(() => {
    const answers = document.querySelectorAll(".answer .prose");
    return answers.item(answers.length - 1)?.textContent ?? "";
  });
}

/** The elements of the last answer. */
export function drawn(page) {
  return page.evaluate(() => {
    const answers = document.querySelectorAll(".answer .prose");
    return answers.item(answers.length - 1)?.innerHTML ?? "";
  });
}

/** The identifier of the session that a page shows. */
export function session(page) {
  return new URL(page.url()).hash.slice(1);
}

/** The stored messages of a session, read from this address. */
export async function stored(id, address = base, token = "") {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const url = new URL(`/api/v1/chat/sessions/${id}`, address);
  for (let tries = 0; ; tries += 1) {
    try {
      // One replica may hang.
      const response = await fetch(url, { headers, signal: AbortSignal.timeout(2000) });
      if (response.status === 429 || response.status >= 500) throw new Error(`status ${response.status}`);
      return (await response.json()).messages ?? [];
    } catch (error) {
      if (tries === 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}
