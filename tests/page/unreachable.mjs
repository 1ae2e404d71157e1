// A question that is sent while no replica can be reached is asked once when one is back.
import { ask, check, open, run, same, session, shown, stored, report, until } from "./browser.mjs";

await run(async (context) => {
  const page = await open(context);
  const id = session(page);
  report({ open: true });
  await page.waitForFunction(() => !document.querySelector(".light").matches(".open"));
  await ask(page, "[[count tokens=20]] while you were away");
  await page.waitForSelector(".question.sending");
  await page.getByText("The connection is lost").waitFor();
  report({ asked: true });
  await until(page, "complete");
  const messages = await stored(id);
  same(messages.map(({ role }) => role).join(), "user,assistant", "the stored messages");
  same(await shown(page), messages[1].content.trim(), "the answer");
  check((await page.locator(".question").count()) === 1, "the question is there once");
  report({ check: "once" });
});
