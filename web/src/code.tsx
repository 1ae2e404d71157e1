/** Blocks of code: their language, a button that copies them, and colours once they are whole. */

import { useEffect, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import type { highlight, Part } from "./highlight";
import { Icon } from "./icons";

/** Longer code stays without colours, in characters: they would take too long. */
const LONGEST = 50_000;
/** How long a button says that it worked, in milliseconds. */
const SHOWN = 1600;

/** The address of the chunk with the languages, which the build knows. */
declare const HIGHLIGHT_URL: string;
let chunk: Promise<{ highlight: typeof highlight }> | undefined;

function coloured(parts: Part[]): ComponentChildren {
  return parts.map((part) =>
    typeof part === "string" ? part : <span class={part.className}>{coloured(part.parts)}</span>,
  );
}

function Colours({ text, language }: { text: string; language: string }) {
  const [parts, setParts] = useState<Part[]>();
  useEffect(() => {
    let isShown = true;
    chunk ??= import(HIGHLIGHT_URL) as NonNullable<typeof chunk>;
    chunk.then(
      ({ highlight }) => {
        if (isShown) setParts(highlight(text, language));
      },
      // Without the chunk there are no colours; the next block tries again.
      () => {
        chunk = undefined;
      },
    );
    return () => {
      isShown = false;
    };
  }, [text, language]);
  return <>{parts ? coloured(parts) : text}</>;
}

export function CodeBlock(props: { text: string; language: string; isGrowing: boolean }) {
  const { text, isGrowing } = props;
  const language = /^[\w+#.-]{1,20}/.exec(props.language)?.[0].toLowerCase() ?? "";
  return (
    <figure class="code" dir="ltr">
      <figcaption>
        <span>{language || "text"}</span>
        <CopyButton text={text} label="Copy code" />
      </figcaption>
      <pre tabIndex={0} aria-label={`Code, ${language || "text"}`} role="group">
        <code>
          {language && !isGrowing && text.length <= LONGEST ? (
            <Colours text={text} language={language} />
          ) : (
            text
          )}
        </code>
      </pre>
    </figure>
  );
}

/** Copies a text. The clipboard's interface exists only in a secure context. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "out-of-sight";
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}

export function CopyButton({ text, label }: { text: string; label: string }) {
  const [state, setState] = useState<"" | "Copied" | "Not copied">("");
  useEffect(() => {
    if (!state) return undefined;
    const timer = setTimeout(() => setState(""), SHOWN);
    return () => clearTimeout(timer);
  }, [state]);
  return (
    <button
      type="button"
      class="quiet"
      title={label}
      onClick={async () => setState((await copy(text)) ? "Copied" : "Not copied")}
    >
      <Icon name={state === "Copied" ? "check" : "copy"} />
      <span class="label" aria-live="polite">
        {state || <span class="hidden">{label}</span>}
      </span>
    </button>
  );
}
