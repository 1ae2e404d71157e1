// Runs the lines of code of the page about clients as they stand there.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PAGE = new URL("../../docs/CLIENTS.md", import.meta.url);

// Returns what the first lines of JavaScript below a heading print, with the address of a replica.
export function printedByPage(modules, heading, url) {
  const section = readFileSync(PAGE, "utf8").split(`\n## ${heading}\n`)[1];
  const code = section.split("```js\n")[1].split("```")[0];
  const folder = mkdtempSync(join(tmpdir(), "jarvis-page-"));
  try {
    // The name of a package is looked up from the file that imports it.
    symlinkSync(modules, join(folder, "node_modules"));
    const file = join(folder, "lines.mjs");
    writeFileSync(file, code.replaceAll("http://HOST:10200", url));
    return execFileSync(process.execPath, [file], { encoding: "utf8" });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
