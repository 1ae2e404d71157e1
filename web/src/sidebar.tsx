/** The list of sessions: search, begin, and what is pinned, recent or archived. */

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { sentence } from "./advice";
import * as api from "./api";
import { openDialog } from "./dialogs";
import { Icon } from "./icons";
import { Row } from "./row";
import * as sessions from "./sessions";
import type { Entry } from "./sessions";

/** Whether the list is open where it covers the conversation: on narrow screens. */
export const isOpen = signal(false);

// On a wide screen it covers nothing.
matchMedia("(width >= 50rem)").addEventListener("change", () => {
  isOpen.value = false;
});

const DAY = 86_400_000;
/** The pause after the last letter before the service is asked, in milliseconds. */
const SEARCH_PAUSE = 250;

/** The heading under which a session is listed. */
function headingOf({ updated, pinned, archived }: Entry): string {
  if (archived) return "Archived";
  if (pinned) return "Pinned";
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY) return "Yesterday";
  if (updated >= today - 7 * DAY) return "This week";
  return "Earlier";
}

/** What a search has found so far. */
interface Found {
  words: string;
  entries: Entry[];
  /** What there is to say of it, as a sentence. */
  note: string;
}

/** Finds sessions by words: those of a user by the service, in the messages, too; those of an anonymous
 * caller by their titles, which are all that the browser has. */
function useFound(words: string): Found {
  const user = sessions.userId.value;
  const [found, setFound] = useState<Found>({ words: "", entries: [], note: "" });
  useEffect(() => {
    if (!user || !words) return undefined;
    let isCurrent = true;
    const ask = setTimeout(async () => {
      const answer = await sessions.search(words).then(
        ({ entries, incomplete }) => ({
          entries,
          note: incomplete ? "Older messages were not searched." : "",
        }),
        (error: unknown) => ({
          entries: [],
          note: error instanceof api.ApiError ? sentence(error.failure.message) : "It failed.",
        }),
      );
      if (isCurrent) setFound({ words, ...answer });
    }, SEARCH_PAUSE);
    return () => {
      isCurrent = false;
      clearTimeout(ask);
    };
  }, [user, words]);
  const list = user ? sessions.remote.value : sessions.local.value;
  if (!words) return { words, entries: list, note: "" };
  if (user && found.words === words) return found;
  // Until the service has answered, what is here.
  const low = words.toLowerCase();
  const entries = list.filter(({ title }) => title.toLowerCase().includes(low));
  return { words, entries, note: user ? "Searching…" : "" };
}

export function Sidebar() {
  const [query, setQuery] = useState("");
  const [trouble, setTrouble] = useState("");
  const [hasArchived, setArchived] = useState(false);
  const close = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (!isOpen.value) return undefined;
    close.current?.focus();
    return () => document.getElementById("menu")?.focus();
  }, [isOpen.value]);
  const user = sessions.userId.value;
  const words = query.trim();
  const { entries, note } = useFound(words);
  const archived = entries.filter((entry) => entry.archived);
  const others = entries.filter((entry) => !entry.archived);
  // Those that are pinned come first; the others have their order.
  const listed = [...others.filter(({ pinned }) => pinned), ...others.filter(({ pinned }) => !pinned)];
  if (hasArchived || words) listed.push(...archived);
  const headings = [...new Set(listed.map(headingOf))];

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
        if (event.key !== "Escape" || !isOpen.value) return;
        event.stopPropagation();
        isOpen.value = false;
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
          aria-label={user ? "Search the conversations" : "Search the titles"}
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
        {headings.map((heading) => (
          <section key={heading} aria-label={heading}>
            <h2>{heading}</h2>
            <ul>
              {listed
                .filter((entry) => headingOf(entry) === heading)
                .map((entry) => (
                  <Row
                    key={entry.id}
                    entry={entry}
                    attempt={attempt}
                    onShow={() => (isOpen.value = false)}
                  />
                ))}
            </ul>
          </section>
        ))}
        {note && <p class="none">{note}</p>}
        {listed.length === 0 && !note && (
          <p class="none">{words ? "Nothing has these words." : "Nothing here yet."}</p>
        )}
        {archived.length > 0 && !words && (
          <button
            type="button"
            class="quiet archived"
            aria-expanded={hasArchived}
            onClick={() => setArchived(!hasArchived)}
          >
            <Icon name="archive" />
            {hasArchived ? "Hide the archived" : `Archived (${archived.length})`}
          </button>
        )}
      </div>
      <button type="button" class="quiet account" onClick={() => openDialog("account")}>
        <Icon name="person" />
        <span class="label">{user || "Not signed in"}</span>
      </button>
    </nav>
  );
}
