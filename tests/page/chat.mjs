// A chat streams, is stored, and is shown alike by a second tab and after a reload.
import { ask, base, check, drawn, open, run, same, session, shown, stored, report, until } from "./browser.mjs";

await run(async (context) => {
  const one = await open(context);
  await one.evaluate(() => {
    window.lengths = new Set();
    new MutationObserver(() => {
      window.lengths.add(document.querySelector(".prose")?.textContent.length);
    }).observe(document.querySelector('[role="log"]'), { subtree: true, childList: true, characterData: true });
  });
  await ask(one, "[[count tokens=250 rate=60]]");
  const id = session(one);
  const two = await open(context, `${base}#${id}`);
  await until(two, "streaming");
  check(await one.getAttribute(".answer", "aria-busy") === "true", "a growing answer is busy");
  await until(one, "complete");
  await until(two, "complete");
  const lengths = await one.evaluate(() => window.lengths.size);
  check(lengths > 5, `the text grew ${lengths} times`);
  const [question, answer] = await stored(id);
  same(await shown(one), answer.content.trim(), "the answer");
  same(await one.textContent(".asked"), question.content, "the question");
  same(await drawn(two), await drawn(one), "the second tab");
  check(await one.getAttribute(".answer", "aria-busy") === "false", "an answer that ended is not busy");
  report({ check: "streams" });

  // From the second tab, with all that Markdown has.
  await ask(two, "[[rate=400 say]]# One\n\n- a **b** `c`\n- d\n\n```js\nlet x = 1;\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\nעברית קודם, then `code` & &amp; <i>x</i>\n\n1. e\n2. f\n");
  await until(one, "complete", 2);
  await until(two, "complete", 2);
  await one.waitForSelector(".hljs-keyword");
  await two.waitForSelector(".hljs-keyword");
  same(await drawn(two), await drawn(one), "the second tab");
  const live = await drawn(one);
  await one.reload();
  await until(one, "complete", 2);
  await one.waitForSelector(".hljs-keyword");
  same(await drawn(one), live, "after a reload");
  check(live.includes("<th") && live.includes("&lt;i&gt;"), live);
  check(await one.locator('.answer p[dir="auto"]').count() > 0, "blocks have their own direction");
  const rtl = one.locator(".answer p", { hasText: "עברית" });
  same(await rtl.evaluate((it) => getComputedStyle(it).direction), "rtl", "the direction");
  check((await one.title()).includes("count"), "the title names the conversation");
  report({ check: "markdown" });

  // A reload in the middle of an answer.
  await ask(one, "[[count tokens=150 rate=60]] again");
  await until(one, "streaming");
  await one.waitForFunction(() => [...document.querySelectorAll(".answer")].at(-1).textContent.length > 60);
  await one.reload();
  await until(one, "complete", 3);
  await until(two, "complete", 3);
  same(await shown(one), (await stored(id)).at(-1).content.trim(), "the answer");
  same(await drawn(two), await drawn(one), "the second tab");
  check((await one.locator(".question").count()) === 3, "three questions");
  report({ check: "reload" });
});
