/** The list of sessions: search, begin, rename, delete. */

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { sentence } from "./advice";
import * as api from "./api";
import { openDialog } from "./dialogs";
import { Icon } from "./icons";
import * as sessions from "./sessions";
import type { Entry } from "./sessions";

/** Whether the list is open where it covers the conversation: on narrow screens. */
export const isOpen = signal(false);

// On a wide screen it covers nothing.
matchMedia("(width >= 50rem)").addEventListener("change", () => {
  isOpen.value = false;
});

const DAY = 86_400_000;

/** The heading of the time when a session was last used. */
function ageOf(updated: number): string {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY) return "Yesterday";
  if (updated >= today - 7 * DAY) return "This week";
  return "Earlier";
}

export function Sidebar() {
  const [query, setQuery] = useState("");
  const [trouble, setTrouble] = useState("");
  const close = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (!isOpen.value) return undefined;
    close.current?.focus();
    return () => document.getElementById("menu")?.focus();
  }, [isOpen.value]);
  const user = sessions.userId.value;
  const words = query.trim().toLowerCase();
  const found = (user ? sessions.remote : sessions.local).value.filter(({ title }) =>
    title.toLowerCase().includes(words),
  );
  const ages = [...new Set(found.map(({ updated }) => ageOf(updated)))];

  const attempt = async (action: () => Promise<unknown>) => {
    setTrouble("");
    try {
      await action();
    } catch (error) {
      setTrouble(error instanceof api.ApiError ? sentence(error.failure.message) : "It failed.");
    }
  };

  return (
    <nav
      class={`sidebar ${isOpen.value ? "open" : ""}`}
      id="sessions"
      aria-label="Conversations"
      onKeyDown={(event) => {
        if (event.key === "Escape") isOpen.value = false;
      }}
    >
      <div class="top">
        <span class="wordmark">jarvis</span>
        <button
          type="button"
          class="quiet only-narrow"
          ref={close}
          onClick={() => (isOpen.value = false)}
        >
          <Icon name="close" />
          <span class="hidden">Close the list</span>
        </button>
      </div>
      <button
        type="button"
        class="begin"
        onClick={() => {
          sessions.showNew();
          isOpen.value = false;
          document.getElementById("question")?.focus();
        }}
      >
        <Icon name="plus" />
        New conversation
      </button>
      <div class="search">
        <Icon name="search" />
        <input
          type="search"
          aria-label="Search the titles"
          placeholder="Search"
          value={query}
          onInput={(event) => setQuery(event.currentTarget.value)}
        />
      </div>
      {trouble && (
        <p class="trouble" role="alert">
          {trouble}
        </p>
      )}
      <div class="entries">
        {ages.map((age) => (
          <section key={age} aria-label={age}>
            <h2>{age}</h2>
            <ul>
              {found
                .filter(({ updated }) => ageOf(updated) === age)
                .map((entry) => (
                  <Row key={entry.id} entry={entry} attempt={attempt} />
                ))}
            </ul>
          </section>
        ))}
        {found.length === 0 && (
          <p class="none">{words ? "No title has these words." : "Nothing here yet."}</p>
        )}
      </div>
      <button type="button" class="quiet account" onClick={() => openDialog("account")}>
        <Icon name="person" />
        <span class="label">{user || "Not signed in"}</span>
      </button>
    </nav>
  );
}

interface RowProps {
  entry: Entry;
  attempt: (action: () => Promise<unknown>) => Promise<void>;
}

function Row({ entry: { id, title }, attempt }: RowProps) {
  const [mode, setMode] = useState<"" | "rename" | "delete">("");
  const link = useRef<HTMLAnchorElement>(null);
  const wasAsked = useRef(false);
  // What took the focus gives it back.
  useEffect(() => {
    if (wasAsked.current && !mode) link.current?.focus();
    wasAsked.current = mode !== "";
  }, [mode]);
  const isCurrent = sessions.current.value === id;
  const isRunning = sessions.isRunning(id);
  const isUnread = sessions.unread.value.has(id);
  const name = title || "Untitled";

  if (mode === "rename") {
    const done = (value: string) => {
      setMode("");
      const renamed = value.trim();
      if (renamed && renamed !== title) void attempt(() => sessions.rename(id, renamed));
    };
    return (
      <li>
        <input
          class="title"
          aria-label="Title"
          ref={(input) => input?.focus()}
          value={title}
          maxLength={200}
          onBlur={(event) => done(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") done(event.currentTarget.value);
            if (event.key === "Escape") {
              event.stopPropagation();
              setMode("");
            }
          }}
        />
      </li>
    );
  }
  if (mode === "delete") {
    return (
      <li class="question-row">
        <span>Delete “{name}”?</span>
        <button
          type="button"
          class="danger"
          ref={(button) => button?.focus()}
          onClick={() => {
            setMode("");
            void attempt(async () => {
              await sessions.remove(id);
              document.getElementById("question")?.focus();
            });
          }}
        >
          Delete
        </button>
        <button type="button" onClick={() => setMode("")}>
          Keep
        </button>
      </li>
    );
  }
  return (
    <li class={isCurrent ? "current" : undefined}>
      <a
        ref={link}
        href={`#${id}`}
        aria-current={isCurrent ? "page" : undefined}
        onClick={(event) => {
          event.preventDefault();
          sessions.show(id);
          isOpen.value = false;
        }}
      >
        <span class="name" dir="auto">
          {name}
        </span>
        {isRunning && (
          <span class="badge running">
            <span class="hidden">, an answer is being written</span>
          </span>
        )}
        {!isRunning && isUnread && (
          <span class="badge">
            <span class="hidden">, a new answer</span>
          </span>
        )}
      </a>
      <button type="button" class="quiet action" title="Rename" onClick={() => setMode("rename")}>
        <Icon name="pencil" />
        <span class="hidden">Rename {name}</span>
      </button>
      <button type="button" class="quiet action" title="Delete" onClick={() => setMode("delete")}>
        <Icon name="trash" />
        <span class="hidden">Delete {name}</span>
      </button>
    </li>
  );
}
