// The longest frame while a long answer streams as fast as it can, and how far the page is moved by it.
import { ask, base, connected, rest, run, report, until } from "./browser.mjs";

const [tokens] = rest;

await run(async (context) => {
  // From the beginning of the navigation to a field that takes a question, and to an open connection.
  const page = await context.newPage();
  await page.addInitScript(() => {
    const now = () => Math.round(performance.now());
    const look = () => {
      if (document.activeElement?.id === "question") window.usable ??= now();
      if (document.querySelector(".light.open")) window.connected ??= now();
      if (!window.usable || !window.connected) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  await page.goto(base);
  await page.waitForFunction(() => window.usable && window.connected);
  const { usable, connected: online } = await page.evaluate(() => ({ usable: window.usable, connected: window.connected }));
  // As many tokens as there are, and not the usual thousand.
  await page.evaluate(() => localStorage.setItem("jarvis.settings", '{"maxTokens":-1}'));
  await page.reload();
  await connected(page);
  await page.evaluate(() => {
    window.frames_ = [];
    window.shift = 0;
    window.tasks = 0;
    let last = performance.now();
    const frame = (now) => {
      window.frames_.push(now - last);
      last = now;
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
    }).observe({ type: "layout-shift" });
    new PerformanceObserver((list) => {
      for (const { duration } of list.getEntries()) window.tasks = Math.max(window.tasks, duration);
    }).observe({ type: "longtask" });
  });
  await ask(page, `[[tokens=${tokens} rate=1500]]`);
  await until(page, "streaming");
  await page.evaluate(() => (window.frames_.length = 0));
  await until(page, "complete");
  await page.waitForFunction(() => {
    const scroller = document.querySelector(".scroller");
    return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 4;
  });
  const { frames, shift, tasks, length } = await page.evaluate(() => {
    return {
      frames: window.frames_.toSorted((a, b) => a - b),
      shift: window.shift,
      tasks: window.tasks,
      length: document.querySelector(".prose").textContent.length,
    };
  });
  const at = (share) => Math.round(frames[Math.floor((frames.length - 1) * share)]);
  report({ usable, online, length, frames: frames.length, median: at(0.5), p99: at(0.99), longest: at(1), task: Math.round(tasks), shift });
});
