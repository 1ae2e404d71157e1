// A user who signs in does not go on in another's conversation, and a user who signs out leaves nothing
// behind.
import { ask, base, check, open, pixel, rest, run, same, session, stored, report, until } from "./browser.mjs";
import { eventually, steer, takeDown } from "./socket.mjs";

const [token] = rest;
const say = (text) => `[[rate=400 say]]${text}`;

async function signIn(page, token) {
  await page.locator(".account").click();
  await page.getByLabel("Token or API key").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Signed in as alice" }).waitFor();
}

await run(async (context) => {
  const page = await context.newPage();
  const wire = await steer(page);
  await page.goto(base);
  await page.waitForSelector(".light.open");
  await ask(page, say("anonymous"));
  await until(page, "complete");
  const id = session(page);
  await page.fill("#question", "a draft of nobody");
  await signIn(page, token);
  await page.getByRole("button", { name: "Move to my account" }).waitFor();
  await page.keyboard.press("Escape");
  await eventually(page, () => session(page) !== id, "another conversation");
  await page.waitForSelector(".light.open");
  await ask(page, say("of alice"));
  await until(page, "complete");
  const own = session(page);
  same((await stored(own, base, token)).length, 2, "what alice reads");
  same((await stored(id)).length, 2, "what was there before");
  report({ check: "declined" });

  // A token of the same user reaches every open socket.
  await ask(page, "[[tokens=400 rate=40]] in the background");
  await until(page, "streaming");
  await page.click(".begin");
  await page.waitForSelector(".light.open");
  const opened = wire.connections;
  const before = wire.sent.filter(({ type }) => type === "auth").length;
  await signIn(page, token);
  await page.keyboard.press("Escape");
  await eventually(page, () => wire.sent.filter(({ type }) => type === "auth").length === before + 2, "two tokens");
  same(String(wire.connections), String(opened), "the connections");
  report({ check: "renewed" });

  const tab = await open(context);
  await tab.click(".chosen");
  const instructions = tab.getByLabel("Instructions for the model");
  await page.fill("#question", "a secret draft");
  await page.click(".chosen");
  await page.getByLabel("Instructions for the model").fill("secret instructions");
  await page.keyboard.press("Escape");
  await eventually(tab, async () => (await instructions.inputValue()) === "secret instructions", "another tab has them");
  await page.locator(".composer select.model").selectOption("vision:latest");
  takeDown(wire);
  await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
  await ask(page, "a secret question");
  await page.fill("#question", "another secret draft");
  await page.setInputFiles("#images", { ...pixel, name: "secret.png" });
  await page.waitForSelector('.attached img[alt="secret.png"]');
  wire.isDown = true;
  await page.locator(".account").click();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.keyboard.press("Escape");
  const kept = await page.evaluate(() => JSON.stringify(localStorage));
  check(!kept.includes("secret") && !kept.includes("jarvis.attached"), kept);
  check(kept.includes("a draft of nobody") && kept.includes(id), "what was there before stays");
  same(await page.inputValue("#question"), "", "the field");
  // Another tab neither has the instructions any more, nor writes them again.
  await eventually(tab, async () => (await instructions.inputValue()) === "", "another tab forgets them");
  await tab.locator('dialog input[type="range"]').fill("0.3");
  const written = await tab.evaluate(() => localStorage.getItem("jarvis.settings"));
  check(written.includes('"temperature":0.3') && !written.includes("secret"), written);
  report({ check: "signed out" });
});
