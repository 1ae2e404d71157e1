// The replica that writes is killed, hangs, or is drained, while the page shows its answer. No reload.
import { ask, check, open, rest, run, same, session, shown, stored, report, until } from "./browser.mjs";

await run(async (context) => {
  const page = await open(context);
  await page.evaluate(() => (window.isSamePage = true));
  await ask(page, "[[count tokens=300 rate=60]] survive");
  await until(page, "streaming");
  await page.waitForFunction(() => document.querySelector(".prose").textContent.length > 60);
  report({ begun: session(page) });
  const began = Date.now();
  await page.waitForFunction(() => !document.querySelector(".light").matches(".open"), null, { polling: 20 });
  const noticed = Date.now() - began;
  await page.waitForSelector(".light.open");
  const back = Date.now() - began;
  await until(page, "complete");
  const messages = await stored(session(page));
  same(await shown(page), messages.at(-1).content.trim(), "the answer");
  check(messages.length === 2 && (await page.locator("article").count()) === 2, "one question, one answer");
  check(await page.evaluate(() => window.isSamePage === true), "the page was loaded again");
  check(messages.at(-1).content.trim().endsWith("300"), messages.at(-1).content);
  const facts = await page.textContent(".answer .facts");
  // One that is drained ends its answers itself, if it can.
  if (!rest.includes("drained")) check(facts.includes("continued after an interruption"), `the facts are ${facts}`);
  report({ noticed, back });
});
