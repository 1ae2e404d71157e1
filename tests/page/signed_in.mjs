// The service requires a sign-in: the page asks for it, and keeps the token in its tab alone.
import { LIMIT, ask, base, check, connected, rest, run, same, stored, report, until } from "./browser.mjs";
import { eventually } from "./socket.mjs";

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
  report({ check: "signed in" });

  // The figures of the account are those of the service.
  const used = async () => {
    const reply = await fetch(new URL("/api/v1/usage", base), { headers: { authorization: `Bearer ${token}` } });
    return (await reply.json()).limits.find(({ limit }) => limit === "user-tokens").used;
  };
  await eventually(page, async () => (await used()) >= 30, "the tokens of the answer");
  await page.locator(".account").click();
  const figures = await page.locator(".usage div", { hasText: "tokens in 24 h, you" }).locator("dd").textContent();
  const [, shownUse] = /^(\d+) of 5,000$/.exec(figures.trim()) ?? [];
  check(Math.abs(Number(shownUse) - (await used())) <= 1, `${figures} instead of ${await used()}`);
  await page.keyboard.press("Escape");
  report({ check: "usage" });

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

  // The service finds what was said, and not only titles.
  const [, { content }] = await stored(id, base, token);
  // Not the last one, which is in the title.
  const word = content.trim().split(/\s+/).at(-3).toUpperCase();
  await there.fill('input[type="search"]', word);
  const found = there.locator("li", { hasText: "of alice" }).locator(".excerpt");
  await found.waitFor();
  check((await found.textContent()).toUpperCase().includes(word), "the excerpt has the word");
  await there.fill('input[type="search"]', `${word} nothing-has-this`);
  await there.getByText("Nothing has these words.").waitFor();
  await there.fill('input[type="search"]', "");
  report({ check: "search" });

  // All conversations leave as a file, and come back where they are gone.
  await there.locator(".account").click();
  const download = there.waitForEvent("download");
  await there.getByRole("button", { name: "Save all to a file" }).click();
  const file = await (await download).path();
  await there.keyboard.press("Escape");
  await there.locator("li", { hasText: "of alice" }).getByTitle("More").click();
  await there.getByRole("button", { name: "Delete", exact: true }).click();
  await there.getByRole("button", { name: "Delete", exact: true }).click();
  await there.waitForFunction(() => document.querySelectorAll(".entries li").length === 0);
  await there.locator(".account").click();
  for (const outcome of ["Read 1 conversation.", "Read 0 conversations; 1 were here already."]) {
    await there.getByLabel("File of conversations").setInputFiles(file);
    await there.getByText(outcome).waitFor();
  }
  await there.keyboard.press("Escape");
  await there.getByRole("link", { name: "of alice" }).click();
  await until(there, "complete");
  const back = new URL(there.url()).hash.slice(1);
  check(back !== id, "the conversation has another identifier");
  same((await stored(back, base, token)).at(-1).content, content, "the answer that came back");
  report({ check: "files" });

  // An answer that another device asked for has a mark in the list, until it has ended.
  await page.click(".begin");
  await ask(page, "[[tokens=60 rate=3]] on another device");
  const mark = there.locator("li", { hasText: "another device" }).locator(".badge.running");
  await mark.waitFor();
  await mark.waitFor({ state: "detached", timeout: 2 * LIMIT });
  report({ check: "elsewhere" });

  same((await stored(back, base, token)).length, 2, "the stored messages");
  await there.locator(".account").click();
  await there.getByRole("button", { name: "Sign out" }).click();
  await there.waitForFunction(() => document.querySelectorAll(".answer").length === 0);
  check((await there.evaluate(() => sessionStorage.length)) === 0, "the token is forgotten");
  report({ check: "list" });
});
