// Requests on their way: nothing is asked twice, in another order, or lost.
import { createHash } from "node:crypto";
import { LIMIT, ask, base, check, connected, open, pixel, rest, run, same, session, shown, stored, report, until } from "./browser.mjs";
import { bringUp, eventually, steer, takeDown } from "./socket.mjs";

const [seeing] = rest;
const digest = createHash("sha256").update(pixel.buffer).digest("hex");
const say = (text) => `[[rate=400 say]]${text}`;
const roles = async (id) => (await stored(id)).map(({ role }) => role).join();
const asked = (page) => page.locator(".asked").allTextContents();

async function steered(context, address = base) {
  const page = await context.newPage();
  const wire = await steer(page);
  await page.goto(address);
  await connected(page);
  return { page, wire };
}

/** Whether the browser keeps the images of the first message that is on its way; runs in the page. */
const isKept = (session) =>
  new Promise((resolve) => {
    const [{ message_id }] = JSON.parse(localStorage.getItem(`jarvis.outgoing.${session}`));
    const opening = indexedDB.open("jarvis", 1);
    opening.onerror = () => resolve(false);
    opening.onsuccess = () => {
      const found = opening.result.transaction("pictures").objectStore("pictures").getKey(message_id);
      found.onsuccess = () => {
        opening.result.close();
        resolve(found.result !== undefined);
      };
    };
  });

async function attach(page, text) {
  await page.setInputFiles("#images", pixel);
  await page.waitForSelector(".attached img");
  await ask(page, text);
}

await run(async (context) => {
  // The service says that Redis does not answer, and had accepted the question.
  {
    const { page, wire } = await steered(context);
    let count = 0;
    let seen;
    const isSeen = new Promise((resolve) => (seen = resolve));
    wire.up = async (message, pass, { inject }) => {
      if (message.type !== "chat") return pass();
      count += 1;
      if (count > 1) {
        await isSeen;
        wire.down = undefined;
        return pass();
      }
      const { message_id } = message;
      wire.down = (event, through) => event.message_id === message_id || through();
      pass();
      inject({ type: "error", code: "store_unavailable", message: "Redis does not answer", retryable: true, message_id });
    };
    await ask(page, say("once"));
    await page.getByText("The message is not taken yet, and is sent again.").waitFor();
    seen();
    await until(page, "complete");
    await eventually(page, async () => (await page.locator(".question.complete").count()) === 1 && (await page.locator("article").count()) === 2, "the question, once");
    const ids = wire.sent.filter(({ type }) => type === "chat").map(({ message_id }) => message_id);
    check(ids.length >= 2 && new Set(ids).size === 1, JSON.stringify(ids));
    same(await roles(session(page)), "user,assistant", "the stored messages");
    await page.close();
    report({ check: "in doubt" });
  }

  // The first of two messages is not taken at once: the second one waits for it.
  {
    const { page, wire } = await steered(context);
    let isRefused = false;
    wire.up = (message, pass, { inject }) => {
      if (message.type !== "chat" || isRefused) return pass();
      isRefused = true;
      const { message_id } = message;
      inject({ type: "error", code: "store_unavailable", message: "Redis does not answer", retryable: true, message_id });
    };
    await ask(page, say("one"));
    await ask(page, say("two"));
    await until(page, "complete", 2);
    const order = (await stored(session(page))).filter(({ role }) => role === "user").map(({ content }) => content);
    same(order.join("|"), [say("one"), say("two")].join("|"), "the stored order");
    await page.close();
    report({ check: "one after the other" });
  }

  // Images: the first request comes to a replica that is being replaced; the second one is accepted, and its
  // reply lost in a balancer.
  const setup = await open(context);
  await setup.evaluate((model) => localStorage.setItem("jarvis.settings", JSON.stringify({ model })), seeing);
  await setup.close();
  {
    const page = await context.newPage();
    let lost = 0;
    await page.route("**/api/v1/chat", async (route) => {
      lost += 1;
      if (lost > 2) return route.continue();
      if (lost === 2) await route.fetch().catch(() => {});
      await route.fulfill({ status: 502, contentType: "application/json", body: "{}" }).catch(() => {});
    });
    await page.goto(base);
    await connected(page);
    await attach(page, "[[images]] what is it?");
    await until(page, "complete");
    await eventually(page, async () => lost >= 2 && (await page.locator("article").count()) === 2, "one turn");
    await page.waitForTimeout(1500);
    same(await roles(session(page)), "user,assistant", "the stored messages");
    check((await page.locator(".question .pictures img").count()) === 1, "its image is shown");
    await page.close();
    report({ check: "lost reply" });
  }

  // The order, with an image that takes its time, and equal texts.
  {
    const page = await context.newPage();
    await page.route("**/api/v1/chat", async (route) => {
      await new Promise((resolve) => setTimeout(resolve, 700));
      await route.continue().catch(() => {});
    });
    await page.goto(base);
    await connected(page);
    const tab = await open(context, `${base}#${session(page)}`);
    await attach(page, "[[images]] same");
    await attach(page, "[[images]] same");
    await ask(page, say("after"));
    await until(page, "complete", 3);
    await until(tab, "complete", 3);
    const order = (await stored(session(page))).filter(({ role }) => role === "user").map(({ content }) => content);
    same(order.join("|"), ["[[images]] same", "[[images]] same", say("after")].join("|"), "the stored order");
    same((await asked(page)).join("|"), order.join("|"), "the order that is shown");
    check((await page.locator(".question .pictures img").count()) === 2, "both images are shown");
    report({ check: "order" });

    // Another tab shows the images, and an edit keeps them.
    await eventually(tab, async () => (await tab.locator(".question .pictures img").count()) === 2, "the images");
    await page.getByTitle("Edit the question").nth(1).click();
    await page.fill(".editor textarea", "[[images]] changed");
    await page.press(".editor textarea", "Enter");
    await eventually(page, async () => (await asked(page)).at(-1) === "[[images]] changed", "the edit");
    await eventually(page, async () => (await page.locator(".answer.complete").count()) === 2, "the answer");
    check((await shown(page)).startsWith("2 images: "), await shown(page));
    check((await page.locator(".question").last().locator(".pictures").count()) === 1, "the edit shows its image");
    await tab.close();
    await page.close();
    report({ check: "elsewhere" });
  }

  // A reload while the images are on their way, and files that are dropped beside the field.
  {
    const page = await context.newPage();
    let isStuck = true;
    await page.route("**/api/v1/chat", (route) => (isStuck ? undefined : route.continue()));
    await page.goto(base);
    await connected(page);
    await attach(page, "[[images]] kept");
    await page.waitForSelector(".question.sending");
    await eventually(page, () => page.evaluate(isKept, session(page)), "the images are kept");
    isStuck = false;
    await page.reload();
    await until(page, "complete");
    check((await shown(page)).includes(digest), await shown(page));
    same(await roles(session(page)), "user,assistant", "the stored messages");

    const dropped = await page.evaluate(async (bytes) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
      const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector(".sidebar").dispatchEvent(event);
      return event.defaultPrevented;
    }, [...pixel.buffer]);
    check(dropped, "the browser would open the file");
    await page.waitForSelector(".attached img");
    await page.locator(".attached button").click();
    await page.close();
    report({ check: "reload" });
  }

  // Deleted while its images are on their way, a session stays deleted.
  {
    const page = await context.newPage();
    let release;
    await page.route("**/api/v1/chat", (route) => {
      release = () => route.continue().catch(() => {});
    });
    await page.goto(base);
    await connected(page);
    const id = session(page);
    await attach(page, "[[images]] delete me");
    await eventually(page, () => release, "the upload");
    await page.locator("li.current").getByTitle("More").click();
    await page.getByRole("button", { name: "Delete", exact: true }).click();
    await page.getByRole("button", { name: "Delete", exact: true }).click();
    await page.waitForFunction((id) => location.hash.slice(1) !== id, id);
    await release();
    await page.waitForTimeout(1500);
    same(await roles(id), "", "the stored messages");
    check(!(await page.evaluate((id) => Object.keys(localStorage).some((key) => key.endsWith(id)), id)), "nothing is kept");
    await page.close();
    report({ check: "deleted" });
  }

  // A refused question stays, in whichever conversation, and goes when its user wants it to.
  {
    const page = await open(context);
    await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"model":"nosuch:1b"}'));
    await page.reload();
    await connected(page);
    await ask(page, "refused?");
    await page.waitForSelector(".question.refused");
    await eventually(page, async () => (await page.textContent('[role="status"]')).includes("The message was refused. "), "the status line");
    const id = session(page);
    await page.click(".begin");
    await page.click(`.entries a[href="#${id}"]`);
    await page.waitForSelector(".question.refused");
    await page.reload();
    await page.waitForSelector(".question.refused");
    await page.evaluate(() => localStorage.removeItem("jarvis.settings"));
    await page.reload();
    await connected(page);
    await page.getByRole("button", { name: "Change it" }).click();
    await eventually(page, async () => (await page.inputValue("#question")) === "refused?", "the draft");
    check((await page.locator("article").count()) === 0, "the question went back");
    await page.press("#question", "Enter");
    await until(page, "complete");
    await page.reload();
    await until(page, "complete");
    check((await page.locator(".question").count()) === 1, "one question");
    await page.close();
    report({ check: "refused" });
  }

  // A question of another conversation is sent after a reload, though that is not shown.
  {
    const { page, wire } = await steered(context);
    const id = session(page);
    takeDown(wire);
    await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
    await ask(page, say("elsewhere"));
    await page.close();
    const other = await open(context);
    check(session(other) !== id, "another conversation");
    await eventually(other, async () => (await roles(id)) === "user,assistant", "the answer");
    await eventually(other, async () => (await other.evaluate((id) => localStorage.getItem(`jarvis.outgoing.${id}`), id)) === null, "nothing left");
    await other.close();
    report({ check: "other conversation" });
  }

  // Another answer that was asked for is seen to be on its way, and asked for once.
  {
    const { page, wire } = await steered(context);
    await ask(page, say("first"));
    await until(page, "complete");
    takeDown(wire);
    await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
    const button = page.getByTitle("Another answer");
    await button.evaluate((it) => {
      it.click();
      it.click();
    });
    await page.locator('.facts', { hasText: 'another answer is on its way' }).waitFor();
    await button.evaluate((it) => it.click());
    await bringUp(page, wire);
    await eventually(page, async () => (await page.locator(".siblings .place").allTextContents()).join() === "2 / 2", "2 / 2");
    const keys = wire.sent.filter(({ type }) => type === "regenerate").map((it) => it.idempotency_key);
    check(keys[0] && new Set(keys).size === 1, "asked for once");

    // As many as may be, and a text that is too long: the page says so, and keeps the text.
    takeDown(wire);
    await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
    for (let at = 0; at < 8; at += 1) await ask(page, say(`${at}`));
    await ask(page, "one more");
    same(await page.textContent(".refusal"), "8 messages are on their way; wait until one of them was taken.", "the ninth");
    same(await page.inputValue("#question"), "one more", "the draft");
    await page.fill("#question", "x".repeat(32_770));
    same(await page.textContent(".refusal"), "The message is 2 characters too long; it may have 32,768.", "too long");
    same(String((await page.inputValue("#question")).length), "32770", "nothing is cut");
    await page.fill("#question", "");
    await bringUp(page, wire);
    await until(page, "complete", 9, 2 * LIMIT);
    await page.close();
    report({ check: "bounds" });
  }

  // What helps against an error: a sign-in, the same again after the time that is named, another conversation.
  {
    const { page, wire } = await steered(context);
    let failure = { code: "token_expired" };
    wire.up = (message, pass, { inject }) => {
      if (message.type !== "chat" || !failure) return pass();
      const { message_id } = message;
      inject({ type: "error", message: "refused", retryable: false, message_id, ...failure });
    };
    const refused = page.locator(".question.refused");
    await ask(page, say("one"));
    await refused.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    await page.keyboard.press("Escape");
    await refused.getByRole("button", { name: "Remove it" }).click();
    failure = { code: "rate_limited", retryable: true, retry_after: 5 };
    await ask(page, say("two"));
    const again = refused.getByRole("button", { name: /^Ask again/ });
    await again.waitFor();
    check((await again.isDisabled()) && /^Ask again in [1-5] s$/.test(await again.textContent()), await again.textContent());
    failure = undefined;
    // It can be pressed once the time is over.
    await again.click();
    await until(page, "complete");
    failure = { code: "session_full" };
    const id = session(page);
    await ask(page, say("three"));
    await refused.getByRole("button", { name: "New conversation" }).click();
    await page.waitForFunction((id) => location.hash.slice(1) !== id, id);
    await page.close();
    report({ check: "remedies" });
  }
});
