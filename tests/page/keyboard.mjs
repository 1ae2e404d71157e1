// A journey by the keyboard alone: to the field, a model, an image, a sign-in, and the account.
import { ask, base, check, open, pixel, report, rest, run, same, session, shown, stored, until } from "./browser.mjs";

const [token] = rest;

/** Presses a key until the focus is on such an element. */
async function reach(page, key, selector) {
  for (let step = 0; step < 60; step += 1) {
    if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
    await page.keyboard.press(key);
  }
  throw new Error(`${key} does not lead to ${selector}`);
}

await run(async (context) => {
  const page = await open(context);
  await reach(page, "Shift+Tab", ".skip");
  check(await page.locator(".skip").evaluate((it) => it.getBoundingClientRect().top >= 0), "the skip link is seen");
  await page.keyboard.press("Enter");
  same(await page.evaluate(() => document.activeElement.id), "question", "the focus after the skip link");
  report({ check: "skip" });

  await page.locator(".composer select.model option[value='vision:latest']").waitFor({ state: "attached" });
  await reach(page, "Tab", "select.model");
  // The letters of a name count as one only where a browser gets them within a second.
  const models = await page.locator("select.model option").count();
  for (let step = 0; step < models && (await page.inputValue("select.model")) !== "vision:latest"; step += 1) {
    await page.keyboard.press("ArrowDown");
  }
  same(await page.inputValue("select.model"), "vision:latest", "the model");
  // Well before the key, which a browser may get before it is told to report the dialog instead of showing it.
  const chooser = page.waitForEvent("filechooser");
  await reach(page, "Shift+Tab", "[title='Add images']");
  await page.keyboard.press("Enter");
  await (await chooser).setFiles(pixel);
  await page.waitForSelector(".attached img");
  await reach(page, "Shift+Tab", "#question");
  await page.keyboard.type("[[images]] what is it?");
  await page.keyboard.press("Enter");
  await until(page, "complete");
  check((await shown(page)).startsWith("1 images: "), await shown(page));
  report({ check: "image" });

  const id = session(page);
  await reach(page, "Shift+Tab", ".account");
  await page.keyboard.press("Enter");
  await reach(page, "Tab", "dialog input[type='password']");
  await page.keyboard.type(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Signed in as alice" }).waitFor();
  await page.waitForSelector(".claim button");
  await reach(page, "Tab", ".claim button");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".claim", { state: "detached" });
  await page.keyboard.press("Escape");
  await page.waitForSelector("dialog", { state: "detached" });
  await page.waitForFunction((id) => location.hash.slice(1) === id, id);
  await ask(page, "[[tokens=5]] and now?");
  await until(page, "complete", 2);
  same(String((await stored(id, base, token)).length), "4", "what the user has");
  report({ check: "claimed" });
});
