/** One session in the list, and what can be done with it. */

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { copy } from "./code";
import { saveMarkdown } from "./files";
import { onEscape } from "./focus";
import { Icon } from "./icons";
import * as sessions from "./sessions";
import type { Entry } from "./sessions";

interface RowProps {
  entry: Entry;
  /** Does something that may fail, and shows why it did. */
  attempt: (action: () => Promise<unknown>) => Promise<void>;
  /** Called when the session is shown. */
  onShow: () => void;
}

/** The session whose menu is open: of one at a time. */
const menuOf = signal("");

export function Row({ entry, attempt, onShow }: RowProps) {
  const { id, title, excerpt } = entry;
  const [mode, setMode] = useState<"" | "rename" | "delete">("");
  const link = useRef<HTMLAnchorElement>(null);
  const more = useRef<HTMLButtonElement>(null);
  const wasAsked = useRef(false);
  // What took the focus gives it back.
  useEffect(() => {
    if (wasAsked.current && !mode) link.current?.focus();
    wasAsked.current = mode !== "";
  }, [mode]);
  const isCurrent = sessions.current.value === id;
  const hasMenu = menuOf.value === id;
  const name = title || "Untitled";
  const begin = (next: "rename" | "delete") => {
    menuOf.value = "";
    setMode(next);
  };
  const act = (action: () => Promise<unknown>) => {
    menuOf.value = "";
    more.current?.focus();
    void attempt(action);
  };

  if (mode === "rename") {
    const done = (value: string) => {
      setMode("");
      const renamed = value.trim();
      if (renamed && renamed !== title) void attempt(() => sessions.rename(id, renamed));
    };
    return <TitleField title={title} onDone={done} onCancel={() => setMode("")} />;
  }
  if (mode === "delete") {
    const remove = async () => {
      await sessions.remove(id);
      document.getElementById("question")?.focus();
    };
    return (
      <Confirmation
        name={name}
        onKeep={() => setMode("")}
        onDelete={() => {
          setMode("");
          void attempt(remove);
        }}
      />
    );
  }
  return (
    <li class={`${isCurrent ? "current" : ""} ${hasMenu ? "open" : ""}`}>
      <a
        ref={link}
        href={`#${id}`}
        aria-current={isCurrent ? "page" : undefined}
        onClick={(event) => {
          event.preventDefault();
          sessions.show(id);
          onShow();
        }}
      >
        <span class="name" dir="auto">
          {name}
        </span>
        <Badge id={id} />
        {excerpt && (
          <span class="excerpt" dir="auto">
            {excerpt}
          </span>
        )}
      </a>
      <button
        ref={more}
        type="button"
        class="quiet action"
        title="More"
        aria-expanded={hasMenu}
        onClick={() => (menuOf.value = hasMenu ? "" : id)}
      >
        <Icon name="more" />
        <span class="hidden">More of {name}</span>
      </button>
      {hasMenu && <Menu entry={entry} begin={begin} act={act} />}
    </li>
  );
}

function Badge({ id }: { id: string }) {
  if (sessions.isRunning(id)) {
    return (
      <span class="badge running">
        <span class="hidden">, an answer is being written</span>
      </span>
    );
  }
  if (!sessions.unread.value.has(id)) return null;
  return (
    <span class="badge">
      <span class="hidden">, a new answer</span>
    </span>
  );
}

function Menu(props: {
  entry: Entry;
  begin: (mode: "rename" | "delete") => void;
  act: (action: () => Promise<unknown>) => void;
}) {
  const { begin, act } = props;
  const { id, title, pinned = false, archived = false } = props.entry;
  const menu = useRef<HTMLDivElement>(null);
  // What was copied is seen nowhere, so the menu stays and says it.
  const [isCopied, setCopied] = useState<boolean>();
  const linkLabel = isCopied === undefined ? "Copy link" : isCopied ? "Copied" : "Not copied";
  const copyLink = async () => setCopied(await copy(new URL(`#${id}`, location.href).href));
  useLayoutEffect(() => menu.current?.querySelector("button")?.focus(), []);
  const item = (icon: Parameters<typeof Icon>[0]["name"], label: ComponentChildren, does: () => void) => (
    <button type="button" class="quiet" onClick={does}>
      <Icon name={icon} />
      {label}
    </button>
  );
  return (
    <div
      ref={menu}
      class="menu"
      role="group"
      aria-label={`What to do with ${title || "Untitled"}`}
      onKeyDown={onEscape(() => act(async () => {}))}
    >
      {item("pin", pinned ? "Unpin" : "Pin", () => act(() => sessions.mark(id, { pinned: !pinned })))}
      {item("pencil", "Rename", () => begin("rename"))}
      {item("archive", archived ? "Take out of the archive" : "Archive", () =>
        act(() => sessions.mark(id, { archived: !archived })),
      )}
      {item(isCopied === true ? "check" : "copy", <span aria-live="polite">{linkLabel}</span>, copyLink)}
      {item("save", "Save as Markdown", () => act(() => saveMarkdown(id, title || "Untitled")))}
      {item("trash", "Delete", () => begin("delete"))}
    </div>
  );
}

function TitleField(props: {
  title: string;
  onDone: (title: string) => void;
  onCancel: () => void;
}) {
  const field = useRef<HTMLInputElement>(null);
  // Once: the list is drawn again from time to time, and must not take the focus from elsewhere.
  useLayoutEffect(() => field.current?.focus(), []);
  // A field that goes loses the focus, which is no decision of the user's.
  const isOver = useRef(false);
  const end = (act: () => void) => {
    if (isOver.current) return;
    isOver.current = true;
    act();
  };
  return (
    <li onKeyDown={onEscape(() => end(props.onCancel))}>
      <input
        class="title"
        aria-label="Title"
        ref={field}
        defaultValue={props.title}
        maxLength={200}
        onBlur={(event) => end(() => props.onDone(event.currentTarget.value))}
        onKeyDown={(event) => {
          if (event.key === "Enter") end(() => props.onDone(event.currentTarget.value));
        }}
      />
    </li>
  );
}

function Confirmation(props: { name: string; onDelete: () => void; onKeep: () => void }) {
  const keep = useRef<HTMLButtonElement>(null);
  // Once, and on what deletes nothing: a key that was meant for another field may come here.
  useLayoutEffect(() => keep.current?.focus(), []);
  return (
    <li class="question-row" onKeyDown={onEscape(props.onKeep)}>
      <span>Delete “{props.name}”?</span>
      <button type="button" class="danger" onClick={props.onDelete}>
        Delete
      </button>
      <button type="button" ref={keep} onClick={props.onKeep}>
        Keep
      </button>
    </li>
  );
}
