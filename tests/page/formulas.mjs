// Formulas are drawn by the browser, from a chunk that is loaded with the first one; money is none.
import { ask, check, drawn, open, run, same, report, until } from "./browser.mjs";

const TEXT = String.raw`The root is $x = \frac{-b \pm \sqrt{d}}{2a}$, which costs $5 and not $6.

$$
\sum_{k=1}^n k = \frac{n(n+1)}{2}
$$

Then \(a^2 + b_1 * c_2 * d\), a wrong $\frac{1$ and the code ${"`$a$`"}.
`;

// Until its end is there, the beginning of this formula reads as a text, lists and quotations; and the address
// of the link comes last.
const LATE = String.raw`See [the source][late].

$$
- a
> b
- c
> d
$$

- one
- two

The end.

[late]: https://a.example/late
`;

await run(async (context) => {
  const page = await open(context);
  const loaded = [];
  page.on("request", (request) => loaded.push(request.url()));
  await ask(page, "[[rate=400 say]]No formula here.");
  await until(page, "complete");
  check(!loaded.some((url) => url.includes("/app/math-")), "nothing is loaded without a formula");
  await ask(page, `[[rate=400 say]]${TEXT}`);
  await until(page, "complete", 2);
  await page.waitForFunction(() => document.querySelectorAll("math").length === 3);
  check(loaded.some((url) => url.includes("/app/math-")), "the chunk is loaded with the first formula");
  const answer = page.locator(".answer").nth(1);
  const text = await answer.locator(".prose").textContent();
  check(text.includes("costs $5 and not $6."), `money is no formula: ${text}`);
  check(text.includes("$\\frac{1$") && text.includes("$a$"), `what is none stays as it was written: ${text}`);
  const [line, fraction] = await answer.evaluate((it) => {
    const height = (element) => element.getBoundingClientRect().height;
    return [height(it.querySelector("math mi")), height(it.querySelector("math mfrac"))];
  });
  check(fraction > 1.4 * line, `a fraction is ${fraction} high, a letter ${line}`);
  report({ check: "drawn" });

  await ask(page, `[[rate=60 say]]${LATE}`);
  await until(page, "complete", 3);
  await page.waitForFunction(() => document.querySelectorAll("math").length === 4);
  same(await page.locator(".prose a").getAttribute("href"), "https://a.example/late", "the address of the link");
  report({ check: "late" });

  const live = await drawn(page);
  await page.reload();
  await until(page, "complete", 3);
  await page.waitForFunction(() => document.querySelectorAll("math").length === 4);
  same(await drawn(page), live, "after a reload");
  report({ check: "reload" });
});
