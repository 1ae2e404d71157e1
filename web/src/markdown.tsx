/** Markdown as elements. A model's text is split into tokens and each token becomes an element by the
 * tables below: no text is ever parsed as HTML, so nothing in it can become a script, and the page's
 * policy forbids the browser to do so anywhere (Trusted Types). */

import { Lexer } from "marked";
import type { MarkedOptions, Token, Tokens } from "marked";
import { createContext } from "preact";
import type { ComponentChildren, VNode } from "preact";
import { useContext, useMemo, useRef } from "preact/hooks";
import { CodeBlock } from "./code";
import { Formula, FORMULAS } from "./formula";
import type { FormulaToken } from "./formula";

const [ofBlocks, ofLines] = (["block", "inline"] as const).map((kind) =>
  FORMULAS.filter(({ level }) => level === kind),
);
const OPTIONS = {
  gfm: true,
  breaks: false,
  extensions: {
    block: ofBlocks!.map(({ tokenizer }) => tokenizer),
    startBlock: ofBlocks!.map(({ start }) => start),
    inline: ofLines!.map(({ tokenizer }) => tokenizer),
    startInline: ofLines!.map(({ start }) => start),
    renderers: {},
    childTokens: {},
  },
} as MarkedOptions;

/** The beginning of a block that is a formula. */
const FORMULA = /\$\$|\\\[/;

/** The blocks of a text that grows. All but the last two are final and are not read again: a later
 * line can still change the last one (a table, a list that goes on), and blank lines count as one.
 * What follows can change more than that in a text with definitions, which links before them may name, and with
 * formulas, whose beginnings are text until their ends are there: such a text is read as a whole once it is
 * complete. */
class Blocks {
  private text = "";
  private done = 0;
  private tokens: Token[] = [];
  private hasDefinitions = false;
  /** How often the text was read anew. */
  readings = 0;

  read(text: string, isGrowing: boolean): Token[] {
    if (!text.startsWith(this.text)) this.forget();
    this.text = text;
    let fresh = this.lex();
    if (!isGrowing && this.done > 0 && (this.hasDefinitions || FORMULA.test(text))) {
      this.forget();
      fresh = this.lex();
    }
    const all = [...this.tokens, ...fresh];
    if (isGrowing && fresh.length > 2) {
      const final = fresh.slice(0, -2);
      this.tokens = [...this.tokens, ...final];
      this.done += final.reduce((sum, { raw }) => sum + raw.length, 0);
    }
    return all;
  }

  private forget(): void {
    [this.done, this.tokens, this.hasDefinitions] = [0, [], false];
    this.readings += 1;
  }

  private lex(): Token[] {
    const fresh = new Lexer(OPTIONS).lex(this.text.slice(this.done));
    this.hasDefinitions ||= Object.keys(fresh.links).length > 0;
    return fresh;
  }
}

/** Texts that need the patterns of the lexer, a few more each. */
const SAMPLES = [
  "# a",
  "```\na\n```",
  "<p>a</p>",
  "| a |\n|--|\n| b |",
  "a\n===",
  "a **b** _c_ ~~d~~ `e` [f](g) ![h](i) <j:k> l@m.example https://n.example \\* &amp;  \no $p$",
  "> a",
  "- a\n- b",
];

/** Reads texts that nobody sees while the browser has nothing else to do. It compiles a pattern when that is used,
 * better at the second time, and again for texts with characters beyond Latin-1. All that takes it over 100 ms, which
 * would hold up the first answer. */
export function warmUp(): void {
  const wide = SAMPLES.map((text) => `${text} …`);
  const rest = [...SAMPLES, ...wide, ...SAMPLES, ...wide];
  const later = (work: () => void) =>
    "requestIdleCallback" in window ? requestIdleCallback(work) : setTimeout(work, 50);
  const next = () => {
    const text = rest.shift();
    if (text === undefined) return;
    new Lexer(OPTIONS).lex(text);
    later(next);
  };
  later(next);
}

/** The reading of the text that is drawn: the same words can be something else in another one, such as a link
 * whose address was not there before. */
const Reading = createContext(0);

/** Shows a text. While it grows, only its last blocks are drawn again. */
export function Markdown({ text, isGrowing }: { text: string; isGrowing: boolean }) {
  const blocks = useRef<Blocks>(undefined!);
  blocks.current ??= new Blocks();
  // Other line ends would make the lengths of tokens differ from the text.
  const tokens = blocks.current.read(text.replace(/\r\n?/g, "\n"), isGrowing);
  const last = tokens.length - 1;
  // A model may leave out levels, which those who walk by headings would look for.
  let level = MESSAGE_LEVEL;
  return (
    <Reading.Provider value={blocks.current.readings}>
      {tokens.map((token, index) => {
        if (token.type === "heading") {
          level = Math.min((token as Tokens.Heading).depth + MESSAGE_LEVEL, level + 1, 6);
        }
        const grows = isGrowing && index === last;
        return <Block key={index} token={token} level={level} isGrowing={grows} />;
      })}
    </Reading.Provider>
  );
}

/** The level of a message's own heading: the page has one above it. */
const MESSAGE_LEVEL = 2;

interface BlockProps {
  token: Token;
  /** The level of a heading. */
  level: number;
  isGrowing: boolean;
}

function Block({ token, level, isGrowing }: BlockProps) {
  const { type, raw } = token;
  const reading = useContext(Reading);
  return useMemo(() => block(token, isGrowing, level, "auto"), [type, raw, level, isGrowing, reading]);
}

/** Where a block finds its direction: in its own text, or in that of what it is in. */
type Direction = "auto" | undefined;

function block(token: Token, isGrowing: boolean, level: number, dir: Direction): ComponentChildren {
  switch (token.type) {
    case "heading": {
      const { depth, tokens } = token as Tokens.Heading;
      const Tag = `h${level}` as "h3";
      return (
        <Tag class={`depth-${depth}`} dir={dir}>
          {inline(tokens)}
        </Tag>
      );
    }
    case "paragraph":
      return <p dir={dir}>{inline((token as Tokens.Paragraph).tokens, isGrowing)}</p>;
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      return <p dir={dir}>{tokens ? inline(tokens, isGrowing) : entities(text)}</p>;
    }
    case "code": {
      const { text, lang } = token as Tokens.Code;
      return <CodeBlock text={text} language={lang ?? ""} isGrowing={isGrowing} />;
    }
    case "list":
      return list(token as Tokens.List, isGrowing, dir);
    case "blockquote":
      return <blockquote dir={dir}>{blocks((token as Tokens.Blockquote).tokens)}</blockquote>;
    case "table":
      return table(token as Tokens.Table);
    case "formula":
      return <Formula token={token as FormulaToken} />;
    case "hr":
      return <hr />;
    case "space":
    case "def":
      return null;
    default:
      // HTML is shown as it was written.
      return <p dir={dir}>{token.raw.trim()}</p>;
  }
}

/** The blocks of a quotation, which have its direction. */
function blocks(tokens: Token[]): ComponentChildren {
  return tokens.map((token) => block(token, false, 6, undefined));
}

/** A list has one direction, because its marks stand at one side. */
function list({ ordered, start, items }: Tokens.List, isGrowing: boolean, dir: Direction): VNode {
  const children = items.map((item, index) => (
    <Item key={index} item={item} isGrowing={isGrowing && index === items.length - 1} />
  ));
  const from = Number(start);
  return ordered ? (
    <ol start={from !== 1 ? from : undefined} dir={dir}>
      {children}
    </ol>
  ) : (
    <ul dir={dir}>{children}</ul>
  );
}

/** An item of a list: drawn again only where it has changed, because a list may be the whole answer. */
function Item({ item, isGrowing }: { item: Tokens.ListItem; isGrowing: boolean }) {
  const { raw, loose, task, checked } = item;
  const draw = () => (
    <li class={task ? "task" : undefined}>
      {task && <input type="checkbox" checked={checked ?? false} disabled aria-label="Done" />}
      {item.tokens.map((token) => {
        // The text of a tight item has no paragraph around it.
        if (token.type === "text" && !loose) {
          const { tokens, text } = token as Tokens.Text;
          return tokens ? inline(tokens, isGrowing) : entities(text);
        }
        return token.type === "checkbox" ? null : block(token, isGrowing, 6, undefined);
      })}
    </li>
  );
  return useMemo(draw, [raw, loose, task, checked, isGrowing, useContext(Reading)]);
}

/** A row of a table, drawn again only where it has changed. */
function Row({ row, align }: { row: Tokens.TableCell[]; align: Tokens.Table["align"] }) {
  const draw = () => (
    <tr>
      {row.map(({ tokens }, index) => (
        <td key={index} class={align[index] ? `to-${align[index]}` : undefined}>
          {inline(tokens)}
        </td>
      ))}
    </tr>
  );
  return useMemo(draw, [row.map(({ text }) => text).join("|"), align.join(), useContext(Reading)]);
}

function table({ header, rows, align }: Tokens.Table): VNode {
  const side = (index: number) => (align[index] ? `to-${align[index]}` : undefined);
  return (
    <div class="table" tabIndex={0} role="group" aria-label="Table">
      <table dir="auto">
        <thead>
          <tr>
            {header.map(({ tokens }, index) => (
              <th key={index} scope="col" class={side(index)}>
                {inline(tokens)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, number) => (
            <Row key={number} row={row} align={align} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The elements of a line. The last text of one that grows may have an emphasis that is not closed
 * yet; its marks are left out, so that the line does not jump when they are. */
function inline(tokens: Token[], isGrowing = false): ComponentChildren {
  return tokens.map((token, index) => {
    const grows = isGrowing && index === tokens.length - 1;
    return span(token, grows);
  });
}

function span(token: Token, isGrowing: boolean): ComponentChildren {
  switch (token.type) {
    case "text": {
      const { tokens, text } = token as Tokens.Text;
      if (tokens) return inline(tokens, isGrowing);
      return isGrowing ? unclosed(text) : entities(text);
    }
    case "escape":
      return (token as Tokens.Escape).text;
    case "strong":
      return <strong>{inline((token as Tokens.Strong).tokens)}</strong>;
    case "em":
      return <em>{inline((token as Tokens.Em).tokens)}</em>;
    case "del":
      return <del>{inline((token as Tokens.Del).tokens)}</del>;
    case "codespan":
      return <code dir="ltr">{(token as Tokens.Codespan).text}</code>;
    case "inlineFormula":
      return <Formula token={token as FormulaToken} />;
    case "br":
      return <br />;
    case "link": {
      const { href, tokens } = token as Tokens.Link;
      return <Link href={href}>{inline(tokens)}</Link>;
    }
    case "image": {
      // Nothing is loaded from elsewhere: an image would tell its host who reads the answer.
      const { href, text } = token as Tokens.Image;
      return <Link href={href}>{text || href}</Link>;
    }
    default:
      return token.raw;
  }
}

/** Shows the beginning of an emphasis or of a code that is not closed yet as what it becomes. */
function unclosed(text: string): ComponentChildren {
  const match = /^(.*?)(\*\*|`)([^*`]+)$/s.exec(text);
  if (!match) return entities(text);
  const [, before = "", mark, rest = ""] = match;
  if (mark === "`") {
    return [entities(before), <code dir="ltr">{rest}</code>];
  }
  return [entities(before), <strong>{entities(rest)}</strong>];
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  let url: URL | undefined;
  try {
    url = new URL(href);
  } catch {
    // What names no place of its own stays text.
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return <>{children}</>;
  return (
    <a href={url.href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

const ENTITIES: Record<string, string> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  copy: "©",
  hellip: "…",
  mdash: "—",
  ndash: "–",
  rarr: "→",
  times: "×",
};

/** Replaces the references of HTML that models use; others stay as they are. */
function entities(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,6}));/gi, (whole, dec, hex, name) => {
    if (name) return ENTITIES[name as string] ?? whole;
    const point = dec ? Number(dec) : Number.parseInt(hex as string, 16);
    return point > 0 && point <= 0x10ffff && !(point >= 0xd800 && point < 0xe000)
      ? String.fromCodePoint(point)
      : "\ufffd";
  });
}
