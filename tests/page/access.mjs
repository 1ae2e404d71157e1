// The findings of axe in the page, in both themes, wide and at 320 pixels; and that nothing is wider.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { readFileSync } from "node:fs";
import { ask, check, connected, open, pixel, rest, run, report, until } from "./browser.mjs";

const require = createRequire(fileURLToPath(new URL("../../web/", import.meta.url)));
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [token] = rest;

/** Runs axe with all rules it has for WCAG 2.2 A and AA, of which it leaves out the size of targets unless it
 * is told otherwise, and for good practice. */
async function findings(page, where) {
  await page.evaluate(axe);
  const { violations, incomplete, rules } = await page.evaluate(async () => {
    const results = await window.axe.run(document, {
      resultTypes: ["violations", "incomplete"],
      rules: { "target-size": { enabled: true } },
    });
    const { violations, incomplete, passes, inapplicable } = results;
    const all = [...violations, ...incomplete, ...passes, ...inapplicable];
    return { violations, incomplete, rules: new Set(all.map(({ id }) => id)).size };
  });
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" ")}`);
  // What axe cannot decide, such as a contrast behind something: rules, and how many elements.
  const undecided = Object.fromEntries(incomplete.map(({ id, nodes }) => [id, nodes.length]));
  report({ where, findings: found, rules, undecided });
  check(found.length === 0, `${where}: ${found.join("\n")}`);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  check(over <= 0, `${where}: ${over} pixels too wide`);
}

const MARKDOWN =
  "[[rate=2000 say]]## A heading\n\nText with `code`, **bold** and [a link](https://a.example).\n\n- [x] done\n- open\n\n> quoted\n\n```python\ndef f(x):  # a comment\n    return 'a long line that has to be scrolled' + str(x) * 42\n```\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n1. one\n2. two";


/**
 * The parts that come up more rarely: alternatives, a formula, an editor, images, a refusal, a menu, an
 * account.
 */
async function more(page, where) {
  const toList = async () => {
    const menu = page.locator("#menu");
    if (await menu.isVisible()) await menu.click();
  };
  await page.getByTitle("Another answer").first().click();
  await page.waitForSelector(".siblings .place");
  await ask(page, "[[rate=2000 say]]A formula: $a^2 + b^2 = c^2$");
  await page.waitForSelector(".prose math");
  await until(page, "complete", 2);
  await page.getByTitle("Edit the question").first().click();
  await findings(page, `${where}, alternatives, a formula and an editor`);
  await page.keyboard.press("Escape");

  await page.locator(".composer select.model").selectOption("vision:latest");
  await page.setInputFiles("#images", pixel);
  await page.waitForSelector(".attached img");
  await findings(page, `${where}, images that wait`);
  await ask(page, "[[images]] what?");
  await until(page, "complete", 3);
  await page.setInputFiles("#images", pixel);
  await page.waitForSelector(".attached img");
  await page.locator(".composer select.model").selectOption("");
  await ask(page, "[[images]] and now?");
  await page.waitForSelector(".question.refused .trouble");
  await findings(page, `${where}, images and a refusal`);
  await page.getByRole("button", { name: "Remove it" }).click();

  await toList();
  await page.getByTitle("More").first().click();
  await page.waitForSelector(".menu");
  await findings(page, `${where}, the menu of a conversation`);
  await page.keyboard.press("Escape");
  await page.click(".account");
  await page.getByLabel("Token or API key").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Signed in as alice" }).waitFor();
  await findings(page, `${where}, an account`);
  await page.keyboard.press("Escape");
}

await run(async (first, browser) => {
  await first.close();
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1200, 320]) {
      const context = await browser.newContext({
        colorScheme,
        viewport: { width, height: 700 },
        reducedMotion: "reduce",
      });
      const page = await open(context);
      const where = `${colorScheme}, ${width}`;
      await findings(page, `${where}, empty`);
      await ask(page, MARKDOWN);
      await until(page, "complete");
      await page.waitForSelector(".hljs-keyword");
      await ask(page, "[[tokens=400 rate=20]] slowly");
      await until(page, "streaming");
      await findings(page, `${where}, while an answer grows`);
      await page.press("#question", "Escape");
      await until(page, "cancelled");
      for (const [name, button] of [["settings", ".chosen"], ["account", ".account"]]) {
        if (name === "account" && width === 320) await page.click("header button");
        await page.click(button);
        await page.waitForSelector("dialog[open]");
        await findings(page, `${where}, ${name}`);
        await page.keyboard.press("Escape");
        await page.waitForSelector("dialog", { state: "detached" });
      }
      if (width === 320) await findings(page, `${where}, the list`);
      if (width === 320) await page.keyboard.press("Escape");
      await more(page, where);
      await context.close();
    }
  }
  // The switch wins over the system, from before the first paint on.
  const context = await browser.newContext({ colorScheme: "light" });
  const page = await open(context);
  await page.click(".chosen");
  await page.locator("dialog select").last().selectOption("dark");
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await paper();
  await page.reload({ waitUntil: "commit" });
  await page.waitForFunction(() => document.documentElement.dataset.theme === "dark");
  await connected(page);
  check((await paper()) === dark && dark !== "rgb(253, 253, 251)", `the colour is ${await paper()}`);
  report({ check: "themes" });
});
