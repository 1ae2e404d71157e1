// The actions of a user in addition to asking: stop, drafts, errors, the list, and XSS that stays text.
import { ask, base, check, connected, open, run, same, session, shown, stored, report, until } from "./browser.mjs";

await run(async (context) => {
  const page = await open(context);
  await ask(page, "[[count tokens=900 rate=40]] long");
  await until(page, "streaming");
  await page.waitForFunction(() => document.querySelector(".prose").textContent.length > 10);
  const id = session(page);
  await page.press("#question", "Escape");
  await until(page, "cancelled");
  const cancelled = (await stored(id)).at(-1);
  same(cancelled.status, "cancelled", "the stored status");
  same(await shown(page), cancelled.content.trim(), "the text so far");
  same(await page.textContent('[role="status"]'), "The answer was stopped.", "the status line");
  report({ check: "stop" });

  await page.fill("#question", "half a thought");
  await page.reload();
  await connected(page);
  same(await page.inputValue("#question"), "half a thought", "the draft");
  await page.click(".begin");
  await page.waitForFunction(() => document.querySelector("#question").value === "");
  check((await page.locator(".answer").count()) === 0, "the new conversation is empty");
  await page.fill("#question", "another draft");
  await page.goto("about:blank");
  await page.goto(base);
  await connected(page);
  same(await page.inputValue("#question"), "another draft", "the draft of a conversation not begun");
  await page.click(`.entries a[href="#${id}"]`);
  await page.waitForFunction(() => document.querySelector("#question").value === "half a thought");
  report({ check: "drafts" });

  // An answer that runs in another conversation has a badge, and then a mark.
  await ask(page, "[[count tokens=200 rate=40]] in the background");
  await until(page, "streaming");
  const tab = await open(context);
  await tab.waitForSelector(`.entries li:has(a[href="#${id}"]) .badge.running`);
  await page.click(".begin");
  await page.waitForSelector(`.entries li:has(a[href="#${id}"]) .badge.running`);
  await page.waitForSelector(`.entries li:has(a[href="#${id}"]) .badge:not(.running)`);
  await tab.waitForSelector(`.entries li:has(a[href="#${id}"]) .badge`, { state: "detached" });
  await tab.close();
  // One that another device asked for has it, too, as soon as the page is looked at, and is gone on with there.
  const elsewhere = await context.browser().newContext();
  const device = await open(elsewhere, `${base}#${id}`);
  await ask(device, "[[count tokens=300 rate=20]] at another device");
  await until(device, "streaming");
  // The page looks by itself every 15 s.
  await page.evaluate(() => void document.dispatchEvent(new Event("visibilitychange")));
  await page.waitForSelector(`.entries li:has(a[href="#${id}"]) .badge.running`);
  await page.click(`.entries a[href="#${id}"]`);
  await until(page, "streaming");
  await until(page, "complete", 2);
  await until(device, "complete", 2);
  same(await shown(page), await shown(device), "the answer at the other device");
  await elsewhere.close();
  same(await shown(page), (await stored(id)).at(-1).content.trim(), "the answer");
  report({ check: "badge" });

  // By the keyboard alone: rename and delete.
  const openMenu = async (steps) => {
    await page.focus(`.entries a[href="#${id}"]`);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".menu");
    for (let step = 0; step < steps; step += 1) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
  };
  await openMenu(1);
  await page.waitForSelector("input.title");
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("A better name");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("h1").textContent === "A better name");
  const title = async () => (await (await fetch(new URL(`/api/v1/chat/sessions/${id}`, base))).json()).title;
  for (let tries = 0; (await title()) !== "A better name" && tries < 100; tries += 1) await page.waitForTimeout(20);
  same(await title(), "A better name", "the stored title");
  await page.fill('input[type="search"]', "nothing has this");
  check((await page.locator(".entries li").count()) === 0, "the search finds nothing");
  await page.fill('input[type="search"]', "BETTER");
  check((await page.locator(".entries li").count()) === 1, "the search finds the title");
  await openMenu(5);
  await page.waitForSelector(".danger");
  // The focus is on what keeps it.
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".entries li").length === 0);
  check((await stored(id)).length === 0, "the session is deleted");
  report({ check: "list" });

  await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"model":"nosuch:1b"}'));
  await page.reload();
  await connected(page);
  await ask(page, "hello?");
  await page.waitForSelector(".question.refused .trouble");
  await page.getByRole("button", { name: "Choose a model" }).click();
  await page.locator("dialog select").first().selectOption("");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Ask again" }).click();
  await until(page, "complete");
  check((await page.locator(".question").count()) === 1, "the question is there once");
  report({ check: "error" });

  await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"model":"nosuch:1b"}'));
  await page.reload();
  await connected(page);
  await page.getByRole("button", { name: "Another answer" }).click();
  await page.waitForSelector(".column > .trouble");
  await page.getByRole("button", { name: "Dismiss" }).click();
  await page.waitForFunction(() => !document.querySelector(".trouble"));
  check((await page.locator(".answer.complete").count()) === 1, "the answer is still there");
  await page.evaluate(() => localStorage.removeItem("jarvis.settings"));
  await page.reload();
  await connected(page);
  report({ check: "dismissed" });

  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  await ask(page, `[[rate=2000 say]]<img src=x onerror="window.hit=1"><script>window.hit=2</script>

<svg onload="window.hit=3">

[a](javascript:window.hit=4) [b](JaVaScRiPt:window.hit=5) [c](data:text/html,x) [d](vbscript:x) ![e](https://elsewhere.example/x.png)

<a href="javascript:window.hit=6">f</a> <https://fine.example/x> [g](https://fine.example/"onmouseover="window.hit=7)

<iframe srcdoc="<script>parent.hit=8</script>"></iframe>

\`\`\`html"><img src=x onerror=window.hit=9>
<script>window.hit=10</script>
\`\`\`
`);
  await until(page, "complete", 2);
  const found = await page.evaluate(() => {
    const elements = [...document.querySelectorAll(".prose *")];
    return {
      hit: window.hit ?? null,
      tags: elements.filter((it) => /^(script|img|svg|iframe|object|style)$/i.test(it.tagName) && !it.closest("button")).length,
      handlers: elements.filter((it) => it.getAttributeNames().some((name) => name.startsWith("on"))).length,
      links: elements.filter((it) => it.tagName === "A").map((it) => it.protocol),
    };
  });
  same(found.hit, null, "a script ran");
  check(found.tags === 0 && found.handlers === 0, JSON.stringify(found));
  check(found.links.length >= 2 && found.links.every((it) => it === "https:"), JSON.stringify(found.links));
  check(requests.every((url) => new URL(url).host === new URL(base).host), requests.join(" "));
  // The policy of the page forbids what the page does not do.
  const policy = await page.evaluate(() => {
    const tries = {};
    try {
      document.createElement("div").innerHTML = "<b>x</b>";
      tries.html = true;
    } catch {
      tries.html = false;
    }
    const script = document.createElement("script");
    try {
      script.text = "window.hit = 11";
      document.body.append(script);
    } catch {}
    return { ...tries, hit: window.hit ?? null };
  });
  check(policy.html === false && policy.hit === null, JSON.stringify(policy));
  report({ check: "inert" });
});
