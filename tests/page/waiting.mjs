// What a user sees of the service: the place in the queue, which shrinks, and what the model was not given.
import { ask, check, open, report, run, shown, until } from "./browser.mjs";
import { eventually } from "./socket.mjs";

/** What the last answer of a page says while it waits. */
async function pending(page) {
  const waiting = page.locator(".answer .pending");
  return (await waiting.count()) ? waiting.last().textContent() : "";
}

await run(async (context) => {
  // The only slot is taken.
  const first = await open(context);
  await ask(first, "[[count tokens=2000 rate=50]] at length");
  await until(first, "streaming");
  const [second, third] = [await open(context), await open(context)];
  await ask(second, "[[tokens=5]] second");
  await eventually(second, async () => (await pending(second)).startsWith("Number 1 in the queue"), "the second is the next");
  await ask(third, "[[tokens=5]] third");
  await eventually(third, async () => (await pending(third)).startsWith("Number 2 in the queue"), "the third is behind it");
  report({ check: "queue" });

  await first.getByRole("button", { name: /stop/i }).click();
  await until(second, "complete");
  await until(third, "complete");
  check((await pending(third)) === "", "nothing waits");
  report({ check: "moves" });

  // Turns were measured by now, so that the time is known.
  await ask(first, "[[count tokens=2000 rate=50]] at length again");
  await until(first, "streaming");
  await ask(second, "[[tokens=5]] later");
  const time = /^Number 1 in the queue, about (less than a second|\d+ (s|min))/;
  await eventually(second, async () => time.test(await pending(second)), "the time");
  await eventually(second, async () => time.test(await second.textContent('[role="status"]')), "the time in the status line");
  await first.getByRole("button", { name: /stop/i }).click();
  await until(second, "complete", 2);
  report({ check: "time" });

  // The context window is small, so that a long conversation does not fit.
  for (let turn = 2; turn < 8; turn += 1) {
    await ask(third, `[[tokens=200]] ${"and on ".repeat(60)}`);
    await until(third, "complete", turn);
  }
  check((await shown(third)) !== "", "an answer");
  const facts = await third.locator(".answer .facts").last().textContent();
  check(/\d+ older messages? (was|were) left out/.test(facts), `the facts are ${facts}`);
  report({ check: "left out" });
});
