// The frames while a long answer streams as fast as it can, and how far the page is moved by it: one of words
// and lists, and one of headings, code and tables.
import { base, connected, rest, run, report, until } from "./browser.mjs";

const [tokens] = rest;
/** A frame or task that takes longer is one too long, in milliseconds. */
const LONG = 50;

/** A part of the answer: a heading, a text, and by turns a short or a long block of code or table. */
function part(number) {
  const lines = number % 4 === 3 ? 60 : 12;
  const code = Array.from({ length: lines }, (_, at) => `  if (value${at} > ${number}) { return "${at}"; } // line ${at}`);
  const rows = Array.from({ length: lines / 4 }, (_, at) => `| row ${at} | ${at * number} | \`cell\` |`);
  return [
    `## Part ${number}`,
    `A text with **words**, \`code\` and [a link](https://a.example/${number}), which goes on for a line or two.`,
    ["```ts", "function first(): string {", ...code, "}", "```"].join("\n"),
    ["| name | value | kind |", "|:--|--:|--|", ...rows].join("\n"),
    `- a list\n  - that has\n  - two levels`,
  ].join("\n\n");
}

/** As much as the context window has room for, twice. */
function rich() {
  let text = "[[rate=1500 say]]";
  for (let number = 1; ; number += 1) {
    const longer = `${text}${part(number)}\n\n`;
    if (longer.length > 9000) return text;
    text = longer;
  }
}

/** Asks in a new conversation, and returns what its answer costs. */
async function measured(page, question) {
  await page.fill("#question", question);
  // Nobody writes a question at once: by then the page has done what it leaves for later.
  await page.waitForTimeout(2000);
  await page.evaluate(() => (window.shift = 0));
  await page.press("#question", "Enter");
  await until(page, "streaming");
  await page.evaluate(() => ([window.frames_, window.began] = [[], performance.now()]));
  await until(page, "complete");
  await page.waitForFunction(() => {
    const scroller = document.querySelector(".scroller");
    return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 4;
  });
  const { frames, shift, tasks, whole, length } = await page.evaluate(() => {
    const tasks = [...window.tasks, ...window.observer.takeRecords()];
    return {
      frames: window.frames_.toSorted((a, b) => a - b),
      shift: window.shift,
      // When each began and how long it took.
      tasks: tasks
        .filter(({ startTime, duration }) => startTime + duration > window.began)
        .map(({ startTime, duration }) => [Math.round(startTime - window.began), Math.round(duration)]),
      whole: Math.round(performance.now() - window.began),
      length: document.querySelector(".prose").textContent.length,
    };
  });
  const at = (share) => Math.round(frames[Math.floor((frames.length - 1) * share)]);
  return {
    length,
    frames: frames.length,
    median: at(0.5),
    p99: at(0.99),
    longest: at(1),
    longFrames: frames.filter((time) => time > LONG).length,
    whole,
    longTasks: tasks.filter(([, time]) => time > LONG),
    shift,
  };
}

await run(async (context) => {
  // From the beginning of the navigation to a field that takes a question, and to an open connection.
  const page = await context.newPage();
  await page.addInitScript(() => {
    const now = () => Math.round(performance.now());
    const look = () => {
      if (document.activeElement?.id === "question") window.usable ??= now();
      if (document.querySelector(".light.open")) window.connected ??= now();
      if (!window.usable || !window.connected) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  await page.goto(base);
  await page.waitForFunction(() => window.usable && window.connected);
  const { usable, connected: online } = await page.evaluate(() => ({ usable: window.usable, connected: window.connected }));
  // As many tokens as there are, and not the usual thousand.
  await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"maxTokens":-1}'));
  await page.reload();
  await connected(page);
  await page.evaluate(() => {
    window.frames_ = [];
    window.shift = 0;
    window.tasks = [];
    let last = performance.now();
    const frame = (now) => {
      window.frames_.push(now - last);
      last = now;
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({ type: "layout-shift" });
    window.observer = new PerformanceObserver((list) => window.tasks.push(...list.getEntries()));
    window.observer.observe({ type: "longtask" });
  });
  report({ browser: context.browser().version(), usable, online });
  report({ answer: "words", ...(await measured(page, `[[tokens=${tokens} rate=1500]]`)) });
  await page.click(".begin");
  await page.waitForSelector(".welcome");
  report({ answer: "code and tables", ...(await measured(page, rich())) });
});
