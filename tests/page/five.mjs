// Five people ask, ask again and edit while replicas are killed and Redis fails over. No page is loaded again, and each shows
// exactly what is stored.
import { LIMIT, ask, check, connected, report, rest, run, base, same, session, stored } from "./browser.mjs";

const PAGES = 5;
/** The longest time of one answer: a failover takes ten seconds of it. */
const ANSWER = 4 * LIMIT;
const [seconds] = rest.map(Number);

/** The messages as they are shown, oldest first. */
function messages(page) {
  return page.evaluate(() =>
    [...document.querySelectorAll("article")].map((article) =>
      (article.querySelector(".asked") ?? article.querySelector(".prose")).textContent.trim(),
    ),
  );
}

/** Begins a turn and waits for its end: by turns a question, another answer to it, and the question edited. */
async function turn(page, number, text) {
  const last = page.locator("article.answer").last();
  const before = number > 1 && (await last.getAttribute("data-generation"));
  const press = (title) => page.locator(`button[title="${title}"]:not([aria-disabled="true"])`).last().click();
  if (number % 3 === 1) {
    await ask(page, text);
  } else if (number % 3 === 2) {
    await press("Another answer");
  } else {
    await press("Edit the question");
    await page.fill(".editor textarea", text);
    await page.press(".editor textarea", "Enter");
  }
  await page.waitForFunction(
    (before) => {
      const answer = [...document.querySelectorAll("article.answer")].at(-1);
      const isOpen = document.querySelector(".question.sending, .answer.waiting, .answer.streaming");
      return answer?.matches(".complete") && answer.dataset.generation !== before && !isOpen;
    },
    before,
    { timeout: ANSWER },
  );
}

/** Reads what is stored. The last fault may last for seconds yet. */
async function kept(id) {
  const until = Date.now() + 2 * LIMIT;
  for (;;) {
    try {
      return (await stored(`${id}?limit=500`)).map(({ content }) => content.trim());
    } catch (error) {
      if (Date.now() > until) throw error;
    }
  }
}

await run(async (_context, browser) => {
  const end = Date.now() + seconds * 1000;
  const errors = [];
  const pages = await Promise.all(
    Array.from({ length: PAGES }, async () => {
      const page = await (await browser.newContext()).newPage();
      page.setDefaultTimeout(LIMIT);
      page.on("pageerror", (error) => errors.push(String(error)));
      await page.goto(base);
      await connected(page);
      await page.evaluate(() => (window.isSamePage = true));
      return page;
    }),
  );
  report({ begun: PAGES });
  const turns = await Promise.all(
    pages.map(async (page, number) => {
      let turns = 0;
      while (Date.now() < end) {
        turns += 1;
        await turn(page, turns, `[[count tokens=90 rate=30]] page ${number}, question ${turns}`);
      }
      return turns;
    }),
  );
  report({ turns });
  for (const [number, page] of pages.entries()) {
    const shown = await messages(page);
    const texts = await kept(session(page));
    // Every third turn has asked something new.
    const asked = Math.ceil(turns[number] / 3);
    check(texts.length === 2 * asked, `page ${number}: ${texts.length} messages of ${asked} questions`);
    check(shown.length === texts.length, `page ${number} shows ${shown.length} of ${texts.length} messages`);
    for (const [at, text] of texts.entries()) same(shown[at], text, `page ${number}, message ${at}`);
    check(await page.evaluate(() => window.isSamePage === true), `page ${number} was loaded again`);
  }
  check(errors.length === 0, `errors of the pages: ${errors.join("; ")}`);
});
