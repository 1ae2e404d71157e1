/** Formulas in an answer: where they begin and end, and how they are shown. */

import type { Tokens } from "marked";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { draw } from "./math";

/** A longer formula is shown as it was written, in characters. */
const LONGEST = 4000;

/** The address of the chunk that draws formulas, which the build knows. */
declare const MATH_URL: string;
let chunk: Promise<{ draw: typeof draw }> | undefined;

export interface FormulaToken extends Tokens.Generic {
  type: "formula" | "inlineFormula";
  tex: string;
  isBlock: boolean;
}

/** A formula by itself has no blank line in it, so that what comes later cannot make one of earlier
 * blocks. */
const BLOCK = /^ {0,3}(?:\$\$((?:(?!\n[ \t]*\n)[\s\S])+?)\$\$|\\\[((?:(?!\n[ \t]*\n)[\s\S])+?)\\\])[ \t]*(?:\n|$)/;
/** A `$` for money is followed by a digit, or has a space before it where a formula would end. */
const INLINE =
  /^(?:\$\$([^\n$]+?)\$\$|\\\(([^\n]+?)\\\)|\$(?![\s$])((?:\\.|[^\\\n$])+?)(?<!\s)\$(?![\d$]))/;

/** What the lexer of Markdown has to know of a kind of formulas. */
interface Kind {
  level: "block" | "inline";
  /** Where one may begin. */
  start: (source: string) => number | undefined;
  /** Reads the one that the source begins with. */
  tokenizer: (source: string) => FormulaToken | undefined;
}

export const FORMULAS: Kind[] = [
  {
    level: "block",
    start: (source) => /(?:^|\n) {0,3}(?:\$\$|\\\[)/.exec(source)?.index,
    tokenizer: (source) => {
      const match = BLOCK.exec(source);
      if (!match) return undefined;
      const tex = (match[1] ?? match[2] ?? "").trim();
      return { type: "formula", raw: match[0], tex, isBlock: true };
    },
  },
  {
    level: "inline",
    start: (source) => /\$|\\\(/.exec(source)?.index,
    tokenizer: (source) => {
      const match = INLINE.exec(source);
      if (!match) return undefined;
      const tex = (match[1] ?? match[2] ?? match[3] ?? "").trim();
      return { type: "inlineFormula", raw: match[0], tex, isBlock: match[1] !== undefined };
    },
  },
];

/** Shows a formula: as it was written until the chunk is there, and where it is none. */
export function Formula({ token: { raw, tex, isBlock, type } }: { token: FormulaToken }) {
  const host = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const element = host.current!;
    element.textContent = raw.trim();
    if (tex.length > LONGEST) return undefined;
    let isShown = true;
    chunk ??= import(MATH_URL) as NonNullable<typeof chunk>;
    chunk.then(
      ({ draw }) => {
        if (!isShown) return;
        try {
          draw(tex, isBlock, element);
        } catch {
          // It stays as it was written.
        }
      },
      () => {
        chunk = undefined;
      },
    );
    return () => {
      isShown = false;
    };
  }, [raw]);
  if (type === "inlineFormula") return <span ref={host} class="formula" dir="ltr" />;
  return (
    <div
      ref={host as preact.RefObject<HTMLDivElement>}
      class="formula block"
      dir="ltr"
      tabIndex={0}
      role="group"
      aria-label="Formula"
    />
  );
}
