/** The colours of code: a chunk of its own, which is loaded with the first block of code. */

import { createLowlight } from "lowlight";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

const lowlight = createLowlight({
  bash, c, cpp, css, diff, go, java, javascript, json, python, rust, sql, typescript, xml, yaml,
});
lowlight.registerAlias({ bash: ["shell", "console"] });

/** A node as lowlight yields it: a tree, and not a text that would have to be parsed as HTML. */
type Node =
  | { type: "text"; value: string }
  | { type: "element"; properties: { className?: unknown }; children: Node[] };

/** A part of the code: its colour's class, and what is in it. The page makes elements of it. */
export type Part = string | { className: string; parts: Part[] };

function part(node: Node): Part {
  if (node.type === "text") return node.value;
  const names = node.properties.className;
  const className = Array.isArray(names) ? names.join(" ") : "";
  return { className, parts: node.children.map(part) };
}

/** Returns the parts of a code; of a language that is not known, the text. */
export function highlight(text: string, language: string): Part[] {
  if (!lowlight.registered(language)) return [text];
  const { children } = lowlight.highlight(language, text);
  return (children as Node[]).map(part);
}
