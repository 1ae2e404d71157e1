// The list of conversations: what is pinned, archived, and saved as a file.
import { readFileSync } from "node:fs";
import { ask, check, connected, open, run, same, session, stored, report, until } from "./browser.mjs";

/** The titles under each heading, as they are shown. */
function shownList(page) {
  return page.evaluate(() => {
    const list = {};
    for (const section of document.querySelectorAll(".entries section")) {
      list[section.querySelector("h2").textContent] = [...section.querySelectorAll(".name")].map((it) => it.textContent);
    }
    return JSON.stringify(list);
  });
}

async function lists(page, wanted) {
  const text = JSON.stringify(wanted);
  for (let tries = 0; (await shownList(page)) !== text && tries < 250; tries += 1) await page.waitForTimeout(20);
  same(await shownList(page), text, "the list");
}

/** Opens the menu of a conversation, and chooses from it. */
async function choose(page, title, item) {
  await page.locator("li", { hasText: title }).getByTitle("More").click();
  await page.locator(".menu").getByRole("button", { name: item, exact: true }).click();
}

await run(async (context) => {
  const page = await open(context);
  const ids = [];
  for (const title of ["apples", "pears", "plums"]) {
    if (ids.length) await page.click(".begin");
    await ask(page, `${title} are red`);
    await until(page, "complete");
    ids.push(session(page));
    await choose(page, title, "Rename");
    await page.fill("input.title", title);
    await page.press("input.title", "Enter");
    await page.waitForFunction((title) => document.querySelector("h1").textContent === title, title);
  }
  await lists(page, { Today: ["plums", "pears", "apples"] });

  await choose(page, "apples", "Pin");
  await lists(page, { Pinned: ["apples"], Today: ["plums", "pears"] });
  await choose(page, "pears", "Archive");
  await lists(page, { Pinned: ["apples"], Today: ["plums"] });
  await page.reload();
  await connected(page);
  await lists(page, { Pinned: ["apples"], Today: ["plums"] });
  const flags = async (id) => {
    const { pinned, archived } = await (await fetch(new URL(`/api/v1/chat/sessions/${id}`, page.url()))).json();
    return JSON.stringify({ pinned, archived });
  };
  same(await flags(ids[0]), '{"pinned":true,"archived":false}', "the flags of the first");
  same(await flags(ids[1]), '{"pinned":false,"archived":true}', "the flags of the second");
  report({ check: "flags" });

  // What is open in the list stays as it is, and takes no focus, when the list is drawn again.
  const other = await open(context);
  const inPlace = (heading) =>
    page.waitForFunction((heading) => {
      const names = [...document.querySelectorAll(".entries .name")];
      const section = names.find((it) => it.textContent === "plums")?.closest("section");
      return section?.querySelector("h2").textContent === heading;
    }, heading);
  await choose(page, "apples", "Rename");
  await page.fill("input.title", "half a ti");
  await choose(other, "plums", "Pin");
  await inPlace("Pinned");
  same(await page.inputValue("input.title"), "half a ti", "the title that is being typed");
  await page.press("input.title", "Escape");
  await choose(page, "apples", "Delete");
  same(await page.evaluate(() => document.activeElement.textContent), "Keep", "the focus");
  await page.focus("#question");
  await choose(other, "plums", "Unpin");
  await inPlace("Today");
  same(await page.evaluate(() => document.activeElement.id), "question", "the focus after a change of the list");
  await page.focus(".question-row .danger");
  await page.keyboard.press("Escape");
  await page.waitForSelector(".question-row", { state: "detached" });
  await other.close();
  report({ check: "undisturbed" });

  // The link of a conversation is copied, and opens it at another device.
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await choose(page, "apples", "Copy link");
  await page.getByRole("button", { name: "Copied", exact: true }).waitFor();
  await page.keyboard.press("Escape");
  const link = await page.evaluate(() => navigator.clipboard.readText());
  const elsewhere = await open(await context.browser().newContext(), link);
  await until(elsewhere, "complete");
  same(session(elsewhere), ids[0], "the conversation of the link");
  await elsewhere.context().close();
  report({ check: "link" });

  await page.getByRole("button", { name: "Archived (1)" }).click();
  await lists(page, { Pinned: ["apples"], Today: ["plums"], Archived: ["pears"] });
  await page.fill('input[type="search"]', "ea");
  await lists(page, { Archived: ["pears"] });
  await page.fill('input[type="search"]', "");
  await choose(page, "pears", "Take out of the archive");
  await choose(page, "apples", "Unpin");
  await lists(page, { Today: ["plums", "pears", "apples"] });
  report({ check: "back" });

  // The menu is one of the keyboard, too, and gives the focus back.
  await page.focus(`.entries a[href="#${ids[2]}"]`);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  const focused = () => page.evaluate(() => document.activeElement.textContent.trim());
  same(await focused(), "Pin", "the first of the menu");
  await page.keyboard.press("Escape");
  same(await focused(), "More of plums", "what opened the menu");
  check((await page.locator(".menu").count()) === 0, "the menu is open");
  report({ check: "keyboard" });

  const download = page.waitForEvent("download");
  await choose(page, "plums", "Save as Markdown");
  const file = await download;
  same(file.suggestedFilename(), "plums.md", "the name of the file");
  const [question, answer] = await stored(ids[2]);
  const wanted = `# plums\n\n## You\n\n${question.content}\n\n## Answer\n\n${answer.content}\n`;
  same(readFileSync(await file.path(), "utf8"), wanted, "the file");
  report({ check: "saved" });
});
