// The title that the model writes after the first answer takes the place of the first question's words.
import { ask, base, open, report, run, same, session, until } from "./browser.mjs";
import { eventually } from "./socket.mjs";

await run(async (context) => {
  const page = await open(context);
  const question = "[[tokens=3]] how do I sort a list?";
  await ask(page, question);
  await until(page, "complete");
  const shown = () => page.textContent("h1");
  same(await shown(), question, "the title until then");
  await eventually(page, async () => (await shown()) !== question, "the title of the model");
  const { title } = await (await fetch(new URL(`/api/v1/chat/sessions/${session(page)}?limit=0`, base))).json();
  same(await shown(), title, "the title");
  same(await page.textContent(".entries .name"), title, "the title in the list");
  same(await page.title(), `${title} – jarvis`, "the title of the tab");
  report({ check: "title" });
});
