// An answer that starts again, and a cursor that cannot be resumed.
import { ask, base, check, connected, open, rest, run, same, session, shown, stored, report, until } from "./browser.mjs";

const [other] = rest;

await run(async (context) => {
  const page = await open(context);
  await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"model":"thinker","think":"high"}'));
  await page.reload();
  await connected(page);
  // The shown text is taken back: the length of the answer falls once.
  await page.evaluate(() => {
    window.fell = 0;
    let last = 0;
    new MutationObserver(() => {
      const { length } = document.querySelector(".prose")?.textContent ?? "";
      if (length < last) window.fell += 1;
      last = length;
    }).observe(document.querySelector('[role="log"]'), { subtree: true, childList: true, characterData: true });
  });
  await ask(page, "[[tokens=120 think=30 rate=80 fault=cut@90]] why?");
  await page.waitForSelector("details.reasoning");
  await until(page, "complete");
  const answer = (await stored(session(page))).at(-1);
  same(await page.textContent(".thought"), answer.thinking, "the reasoning");
  check((await page.getAttribute("details.reasoning", "open")) === null, "the reasoning is folded");
  check((await page.evaluate(() => window.fell)) >= 1, "the answer was taken back");
  await page.getByText("started again after an interruption").waitFor();
  const live = await page.innerHTML(".prose");
  await page.reload();
  await until(page, "complete");
  same(await page.innerHTML(".prose"), live, "after a reload");
  report({ check: "restarted" });

  // While the page is away, more happens than the log of the session holds.
  report({ leave: session(page) });
  await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
  const id = session(page);
  for (let turn = 0; turn < 70; turn += 1) {
    const body = JSON.stringify({ session_id: id, message: `[[count tokens=2]] ${turn}` });
    const reply = await fetch(new URL("/api/v1/chat", other), { method: "POST", body });
    check(reply.ok, await reply.text());
  }
  report({ back: id });
  await connected(page);
  await page.waitForFunction(() => [...document.querySelectorAll(".asked")].at(-1)?.textContent.endsWith(" 69"));
  const asked = await page.locator(".asked").allTextContents();
  check(asked.length === 25 && new Set(asked).size === 25, `${asked.length} questions`);
  check((await page.locator(".answer.complete").count()) === 25, "an answer to each");
  // Older messages are read page by page, to the first question.
  const older = page.getByRole("button", { name: "Earlier messages" });
  while ((await older.count()) > 0) {
    const before = await page.locator("article").count();
    await older.click();
    await page.waitForFunction((before) => document.querySelectorAll("article").length > before, before);
    await page.waitForTimeout(50);
  }
  check((await page.locator(".question").count()) === 71, `${await page.locator(".question").count()} questions`);
  check((await page.locator("article").count()) === 142, "an answer to each question");
  same((await page.textContent(".asked")).slice(-4), "why?", "the first question");
  // And it goes on.
  await page.evaluate(() => localStorage.removeItem("jarvis.settings"));
  await page.reload();
  await connected(page);
  const count = await page.locator(".answer.complete").count();
  await ask(page, "[[count tokens=9]] and on");
  await until(page, "complete", count + 1);
  same(await shown(page), (await lastOf(id)).content.trim(), "the answer");
  check(base !== other, "two replicas");
  report({ check: "history" });
});

/** The newest stored message of a long session. */
async function lastOf(id) {
  const page = await fetch(new URL(`/api/v1/chat/sessions/${id}?limit=0`, other));
  const { total } = await page.json();
  const last = await fetch(new URL(`/api/v1/chat/sessions/${id}?skip=${total - 1}`, other));
  return (await last.json()).messages[0];
}
