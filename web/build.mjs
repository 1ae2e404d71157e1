// Builds the page into a folder: web/dist, or the one that is named. What it writes follows from the
// sources and package-lock.json alone, so that the committed files can be compared with it.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

/** Bundles one file, and returns its text. */
async function bundle(entry, options) {
  const result = await build({
    absWorkingDir: here,
    entryPoints: [join(here, "src", entry)],
    bundle: true,
    minify: true,
    write: false,
    target: ["chrome123", "firefox121", "safari17.5"],
    jsx: "automatic",
    jsxImportSource: "preact",
    legalComments: "none",
    charset: "utf8",
    external: ["/app/*"],
    ...options,
  });
  return result.outputFiles[0].text;
}

/** Writes a part under a name with the digest of its content, and returns that name. */
function write(name, text) {
  const digest = createHash("sha256").update(text).digest("hex").slice(0, 12);
  const hashed = name.replace(/\.(\w+)$/, `-${digest}.$1`);
  writeFileSync(join(out, hashed), text);
  return hashed;
}

const names = {};
const add = (name, text) => (names[name] = write(name, text));

add("highlight.js", await bundle("highlight.ts", { format: "esm" }));
add("math.js", await bundle("math.ts", { format: "esm" }));
add("theme.js", await bundle("theme.ts", { format: "iife" }));
add("style.css", await bundle("style.css", {}));
add("icon.svg", readFileSync(join(here, "src/icon.svg"), "utf8"));
const address = (name) => JSON.stringify(`/app/${names[name]}`);
const define = { HIGHLIGHT_URL: address("highlight.js"), MATH_URL: address("math.js") };
add("main.js", await bundle("main.tsx", { format: "esm", define }));
add("licenses.txt", licenses());

const page = readFileSync(join(here, "src/index.html"), "utf8");
writeFileSync(
  join(out, "index.html"),
  page
    .replace(/\/app\/([\w.]+)/g, (_, name) => `/app/${names[name]}`)
    .replace(/>\s+</g, "><")
    .trim(),
);

/** The licences of the packages that are in the bundle, which ask for their notice. */
function licenses() {
  const lock = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8"));
  const texts = [];
  for (const [path, { dev, version }] of Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (!path || dev || path.includes("@types/")) continue;
    const folder = join(here, path);
    const file = readdirSync(folder).find((name) => /^licen[cs]e/i.test(name));
    if (!file) throw new Error(`${path} has no licence`);
    const text = readFileSync(join(folder, file), "utf8").trim();
    texts.push(`${path.replace(/^node_modules\//, "")} ${version}\n\n${text}\n`);
  }
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}
