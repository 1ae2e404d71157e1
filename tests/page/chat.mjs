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
  const live = await one.evaluate(() => {
    const regions = '[aria-live]:not([aria-live="off"]), [role="status"], [role="alert"]';
    return [document.querySelector('[role="log"]').getAttribute("aria-live"), document.querySelector(".prose").closest(regions)];
  });
  same(JSON.stringify(live), '["off",null]', "what reads a growing text out");
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
  await ask(two, "[[rate=400 say]]# One\n\n- a **b** `c`\n- d\n\n```js\nlet x = 1;\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\nעברית קודם, then `code` & &amp; <i>x</i>\n\n1. e\n2. f\n\n> שלום עולם\n\nThe end.");
  await until(one, "complete", 2);
  await until(two, "complete", 2);
  await one.waitForSelector(".hljs-keyword");
  await two.waitForSelector(".hljs-keyword");
  same(await drawn(two), await drawn(one), "the second tab");
  const before = await drawn(one);
  await one.reload();
  await until(one, "complete", 2);
  await one.waitForSelector(".hljs-keyword");
  same(await drawn(one), before, "after a reload");
  check(before.includes("<th") && before.includes("&lt;i&gt;"), before);
  check(await one.locator('.answer p[dir="auto"]').count() > 0, "blocks have their own direction");
  const rtl = one.locator(".answer p", { hasText: "עברית" });
  same(await rtl.evaluate((it) => getComputedStyle(it).direction), "rtl", "the direction");
  const quotation = one.locator(".answer blockquote");
  same(await quotation.evaluate((it) => getComputedStyle(it).direction), "rtl", "the direction of a quotation");
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

  // A reader who scrolls up stays there while an answer grows, and comes back to its end by a button.
  await ask(one, "[[count tokens=900 rate=150]] at length");
  await until(one, "streaming");
  const length = () => one.evaluate(() => [...document.querySelectorAll(".prose")].at(-1).textContent.length);
  const grows = async () => {
    const before = await length();
    await one.waitForFunction((before) => [...document.querySelectorAll(".prose")].at(-1).textContent.length > before + 300, before);
  };
  await one.waitForFunction(() => document.querySelector(".scroller").scrollTop > 200);
  await one.evaluate(() => (document.querySelector(".scroller").scrollTop = 40));
  const button = one.getByTitle("To the newest");
  await button.waitFor();
  await grows();
  same(String(await one.evaluate(() => document.querySelector(".scroller").scrollTop)), "40", "where the reader is");
  await button.click();
  await grows();
  const isAtEnd = () => {
    const { scrollHeight, scrollTop, clientHeight } = document.querySelector(".scroller");
    return scrollHeight - scrollTop - clientHeight < 60;
  };
  check(await one.evaluate(isAtEnd), "the page follows the end again");
  check((await button.count()) === 0, "the button is gone");
  await one.mouse.click(700, 300);
  await one.keyboard.press("Escape");
  await until(one, "cancelled");
  report({ check: "scroll" });
});
