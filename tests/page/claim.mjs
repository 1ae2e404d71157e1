// A conversation from before the sign-in moves to the account.
import { ask, base, check, open, rest, run, same, session, shown, stored, report, until } from "./browser.mjs";

const [token] = rest;

await run(async (context) => {
  const page = await open(context);
  await ask(page, "[[count tokens=30]] before");
  await until(page, "complete");
  const id = session(page);
  const before = await shown(page);
  await page.locator(".account").click();
  await page.getByLabel("Token or API key").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Move to my account" }).click();
  await page.waitForFunction(() => !document.querySelector(".claim"));
  await page.keyboard.press("Escape");
  await page.locator(`.entries a[href="#${id}"]`).click();
  await until(page, "complete");
  same(await shown(page), before, "the answer");
  same((await stored(id)).length, 0, "what an anonymous caller reads");
  same((await stored(id, base, token)).length, 2, "what the user reads");
  await ask(page, "[[count tokens=10]] after");
  await until(page, "complete", 2);
  check((await page.evaluate(() => localStorage.getItem("jarvis.sessions"))) === "[]", "the local list is empty");
  report({ check: "claimed" });
});
