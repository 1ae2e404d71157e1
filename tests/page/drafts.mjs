// Texts that are written and not sent, in two tabs and over reloads; and data that two tabs keep together.
import { ask, base, check, connected, open, pixel, run, same, session, shown, stored, report, until } from "./browser.mjs";
import { eventually, steer, takeDown } from "./socket.mjs";

const say = (text) => `[[rate=400 say]]${text}`;
const value = (page) => page.inputValue("#question");
const kept = (page, key) => page.evaluate((key) => JSON.parse(localStorage.getItem(`jarvis.${key}`)), key);

await run(async (context) => {
  const page = await open(context);
  await ask(page, say("first"));
  await until(page, "complete");
  const id = session(page);
  {
    // The draft of a conversation that was not begun is found again.
    await page.click(".begin");
    await page.waitForFunction((id) => location.hash.slice(1) !== id, id);
    const fresh = session(page);
    await page.fill("#question", "not begun");
    await page.click(`.entries a[href="#${id}"]`);
    await page.waitForFunction(() => document.querySelector("#question").value === "");
    await page.click(".begin");
    await page.waitForFunction(() => document.querySelector("#question").value === "not begun");
    same(session(page), fresh, "the conversation");
    await page.fill("#question", "");
    await page.click(`.entries a[href="#${id}"]`);
    report({ check: "not begun" });
  }

  const tab = await open(context, `${base}#${id}`);
  await until(tab, "complete");
  {
    // Two tabs have one draft.
    await page.fill("#question", "in one tab");
    await eventually(tab, async () => (await value(tab)) === "in one tab", "the draft in the other tab");
    await tab.fill("#question", "in one tab, and the other");
    await eventually(page, async () => (await value(page)) === "in one tab, and the other", "the draft in the first");
    await tab.fill("#question", "");
    await ask(tab, say("second"));
    await until(page, "complete", 2);
    await page.fill("#question", "not erased");
    await tab.fill("#question", "not erased!");
    await page.reload();
    await connected(page);
    same(await value(page), "not erased!", "the draft after a reload");
    await page.fill("#question", "");
    report({ check: "two tabs" });
  }
  {
    // A text that is written instead of a question.
    await page.getByTitle("Edit the question").last().click();
    await page.fill(".editor textarea", "half an edit");
    await page.reload();
    await page.waitForSelector(".editor textarea");
    same(await page.inputValue(".editor textarea"), "half an edit", "the edit after a reload");
    await page.click(".begin");
    await page.waitForFunction((id) => location.hash.slice(1) !== id, id);
    await page.click(`.entries a[href="#${id}"]`);
    await page.waitForSelector(".editor textarea");
    same(await page.inputValue(".editor textarea"), "half an edit", "the edit after another conversation");
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.reload();
    await until(page, "complete", 2);
    check((await page.locator(".editor").count()) === 0, "a cancelled edit is gone");
    await tab.close();
    report({ check: "edit" });
  }
  {
    // The identifier of an anonymous conversation is its only key: no tab drops another one's.
    const deaf = await context.newPage();
    await deaf.addInitScript(() => {
      // It did not hear of the other ones' conversations yet.
      addEventListener("storage", (event) => event.stopImmediatePropagation(), true);
    });
    await deaf.goto(`${base}#${id}`);
    await until(deaf, "complete", 2);
    const ids = [];
    for (const one of [page, deaf, page, deaf]) {
      await one.click(".begin");
      await one.waitForFunction((ids) => !ids.includes(location.hash.slice(1)), [id, ...ids]);
      await ask(one, say("more"));
      await until(one, "complete");
      ids.push(session(one));
    }
    const listed = (await kept(page, "sessions")).map((entry) => entry.id);
    check([id, ...ids].every((it) => listed.includes(it)), `${listed.length} of 5 are listed`);
    await deaf.close();
    report({ check: "list" });
  }
  {
    // A question that is taken back before its turn began is no part of the conversation; its text is kept.
    await page.click(".begin");
    await ask(page, "[[tokens=900 rate=20]] long");
    await until(page, "streaming");
    await ask(page, say("changed my mind"));
    await page.waitForSelector(".answer.waiting");
    await page.getByRole("button", { name: "Take it back" }).click();
    await page.getByText("You stopped this question before its answer began").waitFor();
    check((await page.locator(".answer").count()) === 1, "one answer");
    check((await page.locator(".question").count()) === 2, "each question is there once");
    await page.press("#question", "Escape");
    await until(page, "cancelled");
    await page.reload();
    await page.getByText("You stopped this question before its answer began").waitFor();
    await page.getByRole("button", { name: "Ask again" }).click();
    await until(page, "complete");
    same((await stored(session(page))).at(-1).content, "changed my mind", "the answer");
    report({ check: "taken back" });
  }
  {
    // One that waits, and is cancelled by another client while events are missed.
    const other = await context.newPage();
    const wire = await steer(other);
    await other.goto(`${base}#${crypto.randomUUID()}`);
    await connected(other);
    await ask(other, "[[tokens=900 rate=20]] long");
    await until(other, "streaming");
    await ask(other, say("cancelled elsewhere"));
    await other.waitForSelector(".answer.waiting");
    const generation = await other.getAttribute(".answer.waiting", "data-generation");
    takeDown(wire);
    const cancel = new URL(`/api/v1/chat/sessions/${session(other)}/cancel`, base);
    const reply = await fetch(cancel, { method: "POST", body: JSON.stringify({ generation_id: generation }) });
    check(reply.ok, await reply.text());
    // The missed events are not stored any more, and a snapshot takes their place.
    let isReplaced = false;
    wire.down = (event, pass, { inject }) => {
      if (event.type === "connection" && !isReplaced) {
        isReplaced = true;
        pass({ ...event, resumed: true, recovered: false });
        inject({ type: "history", messages: [], count: 0, has_more: false });
      } else if (event.type !== "cancelled" || event.generation_id !== generation) {
        pass();
      }
    };
    wire.isDown = false;
    await eventually(other, () => isReplaced, "a snapshot");
    await eventually(other, async () => (await other.locator(`[data-generation="${generation}"]`).count()) === 0, "the turn is gone");
    await other.press("#question", "Escape");
    await until(other, "cancelled");
    await eventually(other, async () => (await other.getByTitle("Stop the answer").count()) === 0, "nothing is open");
    await other.close();
    report({ check: "missed" });
  }
  {
    // Images that wait for their question: after a reload, in two tabs, and in a tab that is opened later.
    const model = page.locator(".composer select.model");
    await model.selectOption("vision:latest");
    await page.click(".begin");
    await page.waitForSelector(".welcome");
    const fresh = session(page);
    await page.setInputFiles("#images", pixel);
    await eventually(page, async () => (await kept(page, "attached"))?.[fresh], "the image is kept");
    await page.reload();
    await page.waitForSelector('.attached img[alt="pixel.png"]');
    const second = await open(context, `${base}#${fresh}`);
    await second.waitForSelector(".attached img");
    await second.setInputFiles("#images", { ...pixel, name: "second.png" });
    await page.waitForSelector('.attached img[alt="second.png"]');
    await page.goto("about:blank");
    await page.goto(base);
    await page.waitForSelector('.attached img[alt="second.png"]');
    same(session(page), fresh, "the conversation");
    await ask(page, "[[images]] what are they?");
    await until(page, "complete");
    check((await shown(page)).startsWith("2 images: "), await shown(page));
    await second.waitForFunction(() => !document.querySelector(".attached"));
    same(await kept(page, "attached"), null, "what is kept");
    await model.selectOption("");
    await second.close();
    report({ check: "images" });
  }
});
