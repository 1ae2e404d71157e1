// Images: by the field for files and by paste, sent, answered, and shown again after a reload.
import { createHash } from "node:crypto";
import { ask, check, open, report, pixel, rest, run, same, shown, until } from "./browser.mjs";
import { eventually } from "./socket.mjs";

const [seeing, blind] = rest;
const digest = createHash("sha256").update(pixel.buffer).digest("hex");

/** Chooses the model of the next questions, as the dialog keeps it. */
async function choose(page, model) {
  await page.evaluate((model) => localStorage.setItem("jarvis.settings", JSON.stringify({ model })), model);
  await page.reload();
  await page.waitForSelector(".light.open");
}

await run(async (context) => {
  const page = await open(context);
  await choose(page, seeing);
  await page.setInputFiles("#images", pixel);
  await page.waitForSelector(".attached img");
  await page.locator(".attached button").click();
  await page.waitForSelector(".attached", { state: "detached" });
  await page.setInputFiles("#images", pixel);
  // A screenshot is pasted: a canvas of this page stands for it.
  await page.focus("#question");
  await page.evaluate(async () => {
    const canvas = new OffscreenCanvas(1200, 900);
    const context = canvas.getContext("2d");
    const noise = context.createImageData(1200, 900);
    // So large that it is made smaller, and transparent at its top.
    for (let at = 0; at < noise.data.length; at += 65536) crypto.getRandomValues(noise.data.subarray(at, at + 65536));
    for (let at = 3; at < noise.data.length; at += 4) noise.data[at] = at < 1200 * 100 * 4 ? 0 : 255;
    context.putImageData(noise, 0, 0);
    const data = new DataTransfer();
    data.items.add(new File([await canvas.convertToBlob()], "shot.png", { type: "image/png" }));
    const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
    document.querySelector("#question").dispatchEvent(paste);
  });
  await page.waitForFunction(() => document.querySelectorAll(".attached img").length === 2);
  const top = await page.evaluate(async () => {
    const image = document.querySelectorAll(".attached img")[1];
    await image.decode();
    const context = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
    context.drawImage(image, 0, 0);
    return Math.min(...context.getImageData(10, 10, 1, 1).data);
  });
  check(top > 240, `what is transparent is white, and not ${top}`);
  await ask(page, "[[images]] what are they?");
  await until(page, "complete");
  const text = await shown(page);
  check(text.startsWith(`2 images: ${digest} and then `), `the answer is ${text}`);
  check((await page.locator(".question .pictures img").count()) === 2, "both are shown");
  const isDrawn = await page.locator(".question .pictures img").evaluateAll((all) => all.every((it) => it.naturalWidth > 0));
  check(isDrawn, "they are drawn");
  check((await page.locator(".question").count()) === 1, "the question stands once");
  check((await page.locator(".attached").count()) === 0, "nothing is left in the field");
  report({ check: "sent" });

  await page.reload();
  await until(page, "complete");
  const isShown = async () => {
    const images = page.locator(".question .pictures img");
    if ((await images.count()) !== 2) return false;
    return images.evaluateAll((all) => all.every((it) => it.complete && it.naturalWidth > 0));
  };
  await eventually(page, isShown, "both images are shown after a reload");
  await ask(page, "[[images]] and now?");
  await until(page, "complete", 2);
  check((await shown(page)).startsWith("2 images: "), "they are a part of what follows");
  report({ check: "later" });

  // A model that takes none is offered none; one that is there already is refused by the service, and stays.
  const model = page.locator(".composer select.model");
  const noImages = "The chosen model takes no images; choose another one.";
  await choose(page, blind);
  await page.getByTitle("Add images").waitFor({ state: "detached" });
  await page.setInputFiles("#images", pixel);
  await page.getByText(noImages).waitFor();
  check((await page.locator(".attached").count()) === 0, "an image was added");
  await model.selectOption(seeing);
  await page.getByTitle("Add images").waitFor();
  await page.setInputFiles("#images", pixel);
  await page.waitForSelector(".attached img");
  check((await page.locator(".refusal").count()) === 0, "there is no trouble");
  // It is the default, which has no entry of its own beside another choice.
  await model.selectOption("");
  await page.getByText(noImages).waitFor();
  await ask(page, "what is it?");
  await page.waitForSelector(".question.refused .trouble");
  check((await page.locator(".question.refused .pictures img").count()) === 1, "the image stays");
  await page.waitForSelector(".question.refused .trouble button:has-text('Choose a model')");
  report({ check: "refused" });

  await page.getByRole("button", { name: "Remove it" }).click();
  await model.selectOption(seeing);
  for (let more = 0; more < 5; more += 1) await page.setInputFiles("#images", { ...pixel, name: `${more}.png` });
  await page.waitForSelector('.refusal[role="alert"]');
  same(await page.textContent(".refusal"), "A message has at most 4 images.", "one too many");
  check((await page.locator(".attached li").count()) === 4, "four are kept");
  report({ check: "bounded" });
});
