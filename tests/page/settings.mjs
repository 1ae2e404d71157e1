// The choices of a user reach the model; copied and dropped files arrive; and nothing moves unasked.
import { ask, base, check, connected, open, rest, run, same, session, shown, stored, report, until } from "./browser.mjs";
import { eventually } from "./socket.mjs";

const [host] = rest;

/** The last request that the model host got. */
async function last() {
  const requests = await (await fetch(new URL("/sim/requests", host))).json();
  return (requests.requests ?? requests).findLast(({ path }) => path === undefined || path === "/api/chat");
}

await run(async (context) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await open(context);

  // The model that will answer is in sight, and is chosen beside the field.
  const model = page.locator(".composer select.model");
  await eventually(page, async () => (await model.locator("option:checked").textContent()) === "tinyllama (default)", "the default");
  await model.selectOption("thinker:latest");
  await ask(page, "[[say rate=400]]with a model");
  await until(page, "complete");
  same((await stored(session(page))).at(-1).model, "thinker:latest", "the model");
  await page.reload();
  await until(page, "complete");
  same(await model.inputValue(), "thinker:latest", "the choice after a reload");
  await model.selectOption("");
  report({ check: "model" });

  await page.click(".chosen");
  await page.locator('dialog input[type="range"]').fill("0.2");
  await page.getByLabel("Length of an answer").selectOption("300");
  await page.getByLabel("Instructions for the model").fill("Answer like a pirate.");
  await page.keyboard.press("Escape");
  await ask(page, "[[say rate=400]]`code`\n\n```js\nlet a = 1;\n```");
  await until(page, "complete", 2);
  same(await page.textContent(".code figcaption span"), "js", "the language of the code");
  const request = await last();
  const text = JSON.stringify(request);
  check(text.includes("Answer like a pirate."), text.slice(0, 2000));
  check(/"temperature":0\.2\b/.test(text), text.slice(0, 2000));
  check(/"num_predict":300\b/.test(text), text.slice(0, 2000));
  report({ check: "settings" });

  // Another tab has the same, and follows, without a reload.
  const tab = await open(context);
  await tab.click(".chosen");
  same(await tab.getByLabel("Instructions for the model").inputValue(), "Answer like a pirate.", "the instructions");
  await page.click(".chosen");
  await tab.getByLabel("Appearance").selectOption("dark");
  await page.waitForFunction(() => document.documentElement.dataset.theme === "dark");
  await tab.getByRole("button", { name: "Reset all but the appearance" }).click();
  await eventually(page, async () => (await page.locator('dialog input[type="range"]').inputValue()) === "0.7", "the settings");
  same(await page.getByLabel("Instructions for the model").inputValue(), "", "the instructions after a reset");
  await page.getByLabel("Appearance").selectOption("system");
  await tab.waitForFunction(() => document.documentElement.dataset.theme === undefined);
  await page.keyboard.press("Escape");
  await tab.close();
  report({ check: "two tabs" });

  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await page.getByTitle("Copy answer").last().click();
  await eventually(page, async () => (await clipboard()) === "`code`\n\n```js\nlet a = 1;\n```", "the answer");
  await page.getByTitle("Copy code").last().click();
  await eventually(page, async () => (await clipboard()).trim() === "let a = 1;", "the code");
  report({ check: "copy" });

  // Dropped on the field.
  await model.selectOption("vision:latest");
  await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(8, 8);
    canvas.getContext("2d").fillRect(0, 0, 8, 8);
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([await canvas.convertToBlob()], "dropped.png", { type: "image/png" }));
    const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
    document.querySelector("#question").dispatchEvent(event);
  });
  await page.waitForSelector('.attached img[alt="dropped.png"]');
  check((await page.locator(".attached li").count()) === 1, "it is there once");
  await model.selectOption("");
  report({ check: "drop" });

  // Nothing moves for a reader who asked for that.
  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.locator(".attached button").click();
  await ask(page, "[[tokens=60 rate=40]] calm");
  await until(page, "streaming");
  same(await page.evaluate(() => document.getAnimations().length), 0, "what moves");
  await page.emulateMedia({ reducedMotion: "no-preference" });
  await page.getByTitle("Stop the answer").click();
  await until(page, "cancelled");
  await eventually(page, () => page.evaluate(() => document.activeElement.id === "question"), "the focus after a stop");
  report({ check: "calm" });

  // The focus stays where it was, though the button that had it goes.
  await page.getByTitle("Edit the question").last().focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.activeElement.closest(".editor"));
  await page.keyboard.press("Escape");
  await eventually(page, () => page.evaluate(() => document.activeElement.title === "Edit the question"), "the focus after an edit");
  const again = page.getByTitle("Another answer").first();
  await again.focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector(".siblings .place");
  await eventually(page, () => page.evaluate(() => document.querySelectorAll(".answer.complete").length === 1), "the other answer");
  check(await page.evaluate(() => document.activeElement.matches("article.answer")), "the answer that grows has the focus");
  const before = page.getByTitle("The answer before");
  await before.focus();
  await page.keyboard.press("Enter");
  await eventually(page, async () => (await page.textContent(".siblings .place")) === "1 / 2", "1 / 2");
  same(await page.evaluate(() => document.activeElement.title), "The answer before", "the focus after an arrow");
  await page.getByTitle("Edit the question").first().focus();
  await page.keyboard.press("Enter");
  await page.fill(".editor textarea", "[[say rate=400]]edited");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await eventually(page, async () => (await shown(page)) === "edited", "the answer to the edit");
  same(await page.evaluate(() => document.activeElement.id), "question", "the focus after Ask");
  report({ check: "focus" });
});
