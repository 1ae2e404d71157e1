// The service requires a sign-in: the page asks for it, and keeps the token in its tab alone.
import { ask, base, check, connected, open, rest, run, same, stored, tell, until } from "./browser.mjs";

const [token] = rest;

await run(async (context, browser) => {
  const page = await context.newPage();
  await page.goto(base);
  const field = page.getByLabel("Token or API key");
  await field.waitFor();
  await field.fill("sk-jarvis-wrong");
  await page.getByRole("button", { name: "Sign in", exact: true }).last().click();
  await page.locator("dialog [role=alert]").waitFor();
  await field.fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Signed in as alice" }).waitFor();
  await page.locator("meter").first().waitFor();
  await page.keyboard.press("Escape");
  await connected(page);
  await ask(page, "[[count tokens=30]] of alice");
  await until(page, "complete");
  tell({ check: "signed in" });

  // The list is the service's: another browser has it, too.
  await page.reload();
  await until(page, "complete");
  const kept = await page.evaluate(() => JSON.stringify(localStorage));
  check(!kept.includes(token), "the token is in localStorage");
  const other = await browser.newContext();
  const there = await other.newPage();
  await there.goto(base);
  await there.getByLabel("Token or API key").fill(token);
  await there.keyboard.press("Enter");
  await there.getByRole("heading", { name: "Signed in as alice" }).waitFor();
  await there.keyboard.press("Escape");
  await there.getByRole("link", { name: "of alice" }).click();
  await until(there, "complete");
  const id = new URL(there.url()).hash.slice(1);
  same((await stored(id, base, token)).length, 2, "the stored messages");
  await there.locator(".account").click();
  await there.getByRole("button", { name: "Sign out" }).click();
  await there.waitForFunction(() => document.querySelectorAll(".answer").length === 0);
  check((await there.evaluate(() => sessionStorage.length)) === 0, "the token is forgotten");
  tell({ check: "list" });
});
