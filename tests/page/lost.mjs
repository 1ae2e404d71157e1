// Requests of the page without a reply: they are sent again, and a late reply harms nothing.
import { ask, base, check, connected, open, run, same, session, shown, stored, report, until } from "./browser.mjs";
import { eventually, steer, takeDown } from "./socket.mjs";

const say = (text) => `[[rate=400 say]]${text}`;

/** Begins a session with these questions, and returns its identifier. */
async function begun(...questions) {
  const id = crypto.randomUUID();
  for (const question of questions) {
    const body = JSON.stringify({ session_id: id, message: say(question) });
    const reply = await fetch(new URL("/api/v1/chat", base), { method: "POST", body });
    check(reply.ok, await reply.text());
  }
  return id;
}

/** Opens a session in a page whose connection is steered. */
async function steered(context, id, handlers) {
  const page = await context.newPage();
  const wire = await steer(page, handlers);
  await page.goto(`${base}#${id}`);
  return { page, wire };
}

const asked = (page) => page.locator(".asked").allTextContents();

await run(async (context) => {
  // The connection ends between its first event and the stored messages.
  const id = await begun("one", "two");
  {
    const { page, wire } = await steered(context, id, {
      down: (event, pass, connection) => {
        if (event.type === "history" && connection.number === 1) return connection.cut();
        return pass();
      },
    });
    await until(page, "complete", 2);
    check(wire.connections === 2 && wire.last.url.includes("cursor="), "one more connection, with a cursor");
    await page.close();
    report({ check: "first history" });
  }

  // It ends before the messages of the branch that was selected.
  {
    const other = await context.newPage();
    const wire = await steer(other);
    await other.goto(`${base}#${id}`);
    await until(other, "complete", 2);
    await other.getByTitle("Another answer").last().click();
    await other.waitForSelector(".siblings .place");
    await eventually(other, async () => (await other.textContent(".siblings .place")) === "2 / 2", "2 / 2");
    await eventually(other, async () => (await other.locator(".answer.complete").count()) === 2, "the answer");
    let isCut = false;
    wire.down = (event, pass, connection) => {
      if (event.type === "history" && !isCut) {
        isCut = true;
        return connection.cut();
      }
      return pass();
    };
    await other.getByTitle("The answer before").last().click();
    await eventually(other, async () => (await other.textContent(".siblings .place")) === "1 / 2", "1 / 2");
    check(isCut && wire.connections === 2, "the connection was cut");

    // A click while there is no connection is carried out when there is one.
    wire.down = undefined;
    takeDown(wire);
    await other.waitForFunction(() => !document.querySelector(".light").matches(".open"));
    await other.getByTitle("The next answer").last().click();
    wire.isDown = false;
    await eventually(other, async () => (await other.textContent(".siblings .place")) === "2 / 2", "2 / 2 again");
    await other.close();
    report({ check: "branch" });
  }

  // A connection so slow that the stored messages need five seconds, and every pong queues behind them.
  {
    let held = 0;
    const { page, wire } = await steered(context, id, {
      down: (event, pass) => {
        if (event.type === "history") held = Date.now() + 5000;
        const wait = held - Date.now();
        if (wait > 0) setTimeout(pass, wait);
        else pass();
      },
    });
    await until(page, "complete", 2);
    check(Date.now() > held && wire.connections === 1, `${wire.connections} connections`);
    await page.close();
    report({ check: "slow" });
  }

  // A history that is refused, once for now, and errors and snapshots that come between.
  {
    let refusals = 0;
    const { page, wire } = await steered(context, id, {
      up: (message, pass, { inject }) => {
        if (message.type !== "get_history" || refusals > 0) return pass();
        refusals += 1;
        inject({ type: "error", code: "rate_limited", message: "wait", retryable: true });
        const { message_id } = message;
        return inject({
          type: "error",
          code: "store_unavailable",
          message: "Redis does not answer",
          retryable: true,
          retry_after: 1,
          message_id,
        });
      },
    });
    await until(page, "complete", 2);
    check(wire.connections === 1 && refusals === 1, "asked again on the same connection");
    await page.close();
    report({ check: "refused" });
  }

  // An answer that ends after the stored messages were read and before they arrive.
  {
    let late;
    const { page } = await steered(context, id, {
      down: (event, pass) => {
        if (event.type === "history" && !late) late = pass;
        else pass();
      },
    });
    await connected(page);
    await eventually(page, () => late, "the history");
    await ask(page, say("three"));
    await until(page, "complete");
    late();
    await until(page, "complete", 3);
    const texts = await asked(page);
    same(texts.join("|"), [say("one"), say("two"), say("three")].join("|"), "the questions");
    same(await shown(page), "three", "the answer");
    await page.close();
    report({ check: "late" });
  }

  // Earlier messages that were loaded stay when the newest are read again.
  {
    const long = await begun(...Array.from({ length: 14 }, (_, at) => `n${at}`));
    const { page, wire } = await steered(context, long);
    await until(page, "complete", 10);
    check((await page.locator("article").count()) === 20, "the first page is small");
    // A snapshot that comes between is not taken for the earlier messages, nor they for it.
    const newest = (await stored(long)).slice(-2);
    wire.down = (event, pass, { inject }) => {
      if (event.type !== "history") return pass();
      wire.down = undefined;
      inject({ type: "history", messages: newest, count: 2, has_more: true });
      return pass();
    };
    await page.getByRole("button", { name: "Earlier messages" }).click();
    await page.waitForFunction(() => document.querySelectorAll("article").length === 28);
    await page.getByTitle("Another answer").last().click();
    await eventually(page, async () => (await page.locator(".siblings .place").allTextContents()).join() === "2 / 2", "2 / 2");
    check((await page.locator("article").count()) === 28, "all messages stay");
    same((await asked(page))[0], say("n0"), "the first question");
    check((await page.getByRole("button", { name: "Earlier messages" }).count()) === 0, "there is nothing before");
    await page.close();
    report({ check: "earlier" });
  }

  // Stop, pressed while there is no connection, stops that answer and no other.
  {
    const page = await context.newPage();
    const wire = await steer(page);
    await page.goto(base);
    await connected(page);
    await ask(page, "[[count tokens=900 rate=30]] long");
    await until(page, "streaming");
    const generation = await page.getAttribute(".answer", "data-generation");
    takeDown(wire);
    await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
    await page.getByTitle("Stop the answer").click();
    wire.isDown = false;
    await until(page, "cancelled");
    const cancels = wire.sent.filter(({ type }) => type === "cancel");
    check(cancels.length > 0 && cancels.every((it) => it.generation_id === generation), JSON.stringify(cancels));
    same((await stored(session(page))).at(-1).status, "cancelled", "the stored status");
    same(await page.evaluate(() => document.activeElement.id), "question", "the focus");
    await page.close();
    report({ check: "stop" });
  }

  // A connection that dies without a word, while nothing is awaited.
  {
    const page = await context.newPage();
    const wire = await steer(page);
    await page.goto(base);
    await page.waitForSelector(".welcome");
    wire.up = wire.down = () => {};
    const began = Date.now();
    await page.waitForFunction(() => !document.querySelector(".light").matches(".open"), null, { polling: 20 });
    const noticed = Date.now() - began;
    // At most 3 s by its own clocks; the rest is for a busy machine.
    check(noticed < 5000, `noticed after ${noticed} ms`);
    wire.up = wire.down = undefined;
    await connected(page);
    report({ check: "silent" });

    // The pauses between attempts have grown: each of these makes the page try at once.
    const fire = (target, name) =>
      page.evaluate(([target, name]) => void globalThis[target].dispatchEvent(new Event(name)), [target, name]);
    const causes = {
      online: () => fire("window", "online"),
      focus: () => fire("window", "focus"),
      pageshow: () => fire("window", "pageshow"),
      visible: () => fire("document", "visibilitychange"),
      "Try now": () => page.getByRole("button", { name: "Try now" }).click(),
    };
    for (const [cause, act] of Object.entries(causes)) {
      takeDown(wire);
      // A pause of two seconds at least follows the fourth attempt.
      await eventually(page, () => wire.refused >= 4, "four attempts");
      await page.waitForSelector(".light.waiting");
      wire.isDown = false;
      const began = Date.now();
      await act();
      await connected(page);
      const took = Date.now() - began;
      check(took < 1900, `${cause}: connected after ${took} ms`);
    }
    report({ check: "at once" });

    // The service closes the connection: how long the page waits follows from the code and the reason.
    const closes = [
      [1001, "", 0, 2500],
      [1011, "", 1000, 3500],
      [1012, '{"retry_after":1}', 1000, 3500],
      [1013, "", 2000, 6500],
    ];
    for (const [code, reason, least, most] of closes) {
      const { connections } = wire;
      const began = Date.now();
      wire.last.close(code, reason);
      await eventually(page, () => wire.connections > connections, `a connection after ${code}`);
      const took = Date.now() - began;
      check(took >= least && took < most, `${code}: connected after ${took} ms`);
      await connected(page);
    }
    for (const [reason, text] of [["too many messages", "reload the page"], ["the key was revoked", "sign in to continue"]]) {
      await page.reload();
      await connected(page);
      const { connections } = wire;
      wire.last.close(1008, reason);
      await page.locator(".status", { hasText: text }).waitFor();
      check(wire.connections === connections, `1008, ${reason}: no further attempt`);
    }
    await page.close();
    report({ check: "close codes" });
  }
});
