// Another answer, an edited question, and the way back, the same in two tabs and after a reload.
import { ask, base, connected, open, run, same, session, shown, stored, report, until } from "./browser.mjs";

/** Waits until a page shows these questions, this last answer, and the places among alternatives. */
async function shows(page, questions, answer, places) {
  const wanted = JSON.stringify([questions, answer, places]);
  const state = (wanted) => {
    const texts = (selector) => [...document.querySelectorAll(selector)].map((it) => it.textContent.trim());
    const open = document.querySelectorAll(".answer.streaming, .answer.waiting").length;
    const now = JSON.stringify([texts(".asked"), texts(".answer .prose").at(-1), texts(".siblings .place")]);
    return wanted === undefined ? now : open === 0 && now === wanted;
  };
  try {
    await page.waitForFunction(state, wanted, { timeout: 15_000 });
  } catch {
    same(await page.evaluate(state), wanted, "what the page shows");
  }
}

const say = (text) => `[[rate=400 say]]${text}`;

await run(async (context) => {
  const one = await open(context);
  await ask(one, say("first"));
  await until(one, "complete");
  const id = session(one);
  const two = await open(context, `${base}#${id}`);
  await until(two, "complete");
  const both = async (...state) => {
    await shows(one, ...state);
    await shows(two, ...state);
  };

  await one.getByTitle("Another answer").click();
  await both([say("first")], "first", ["2 / 2"]);
  report({ check: "regenerated" });

  await two.getByTitle("The answer before").click();
  await both([say("first")], "first", ["1 / 2"]);
  report({ check: "selected" });

  await ask(two, say("second"));
  await both([say("first"), say("second")], "second", ["1 / 2"]);
  await one.getByTitle("Edit the question").first().click();
  await one.fill(".editor textarea", say("instead"));
  await one.press(".editor textarea", "Enter");
  await both([say("instead")], "instead", ["2 / 2"]);
  same((await stored(id)).map(({ content }) => content).join("|"), `${say("instead")}|instead`, "what is stored");
  report({ check: "edited" });

  await one.getByTitle("The question before").click();
  await both([say("first"), say("second")], "second", ["1 / 2", "1 / 2"]);
  same(await shown(one), await shown(two), "the two tabs");
  await one.reload();
  await shows(one, [say("first"), say("second")], "second", ["1 / 2", "1 / 2"]);
  report({ check: "back" });

  // An edit that was refused is sent again as that edit.
  await one.evaluate(() => localStorage.setItem("jarvis.settings", '{"model":"nosuch:1b"}'));
  await one.reload();
  await connected(one);
  await one.getByTitle("Edit the question").last().click();
  await one.fill(".editor textarea", say("third"));
  await one.press(".editor textarea", "Enter");
  await one.getByRole("button", { name: "Choose a model" }).click();
  await one.locator("dialog select").first().selectOption("");
  await one.keyboard.press("Escape");
  await one.getByRole("button", { name: "Ask again" }).click();
  await both([say("first"), say("third")], "third", ["1 / 2", "1 / 2", "2 / 2"]);
  report({ check: "edited again" });

  // An answer that failed is generated again; its question is not asked again.
  const fails = "[[rate=400 fault=status@400 say]]fourth";
  await ask(one, fails);
  await one.getByRole("button", { name: "Ask again" }).click();
  const places = ["1 / 2", "1 / 2", "2 / 2", "2 / 2"];
  await both([say("first"), say("third"), fails], "fourth", places);
  report({ check: "failed" });
});
