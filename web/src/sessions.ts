/** The list of sessions, and the conversations that this tab has open. An anonymous caller's list is
 * kept in the browser, a user's by the service. */

import { batch, computed, effect, signal } from "@preact/signals";
import * as api from "./api";
import { Conversation } from "./conversation";
import type { Message } from "./conversation";
import * as kept from "./kept";
import type { Picture } from "./pictures";

export interface Entry {
  id: string;
  title: string;
  /** Milliseconds since 1970. */
  updated: number;
  pinned?: boolean;
  archived?: boolean;
  /** The text by which a search found it, where it was not its title. */
  excerpt?: string;
}

/** Sessions that the browser remembers, at most. */
const MOST_ENTRIES = 500;
/** Drafts that are kept, at most. */
const MOST_DRAFTS = 50;
/** Conversations that stay connected in the background, at most, to the end of their turns. */
const MOST_BACKGROUND = 4;
const TITLE_LENGTH = 60;
/** Sessions that a search lists, at most. */
const MOST_FOUND = 100;

/** The anonymous sessions of this browser, the last used first. */
export const local = signal(kept.read<Entry[]>("sessions", []));
/** The sessions of the signed-in user. */
export const remote = signal<Entry[]>([]);
export const userId = signal("");
/** Sessions with an open turn in other tabs, by the tab, and until when that is believed. */
const elsewhere = signal<ReadonlyMap<string, { running: string[]; until: number }>>(new Map());
/** Sessions whose answer ended while another one was shown. */
export const unread = signal<ReadonlySet<string>>(new Set());
const open = signal<ReadonlyMap<string, Conversation>>(new Map());

function toEntry(info: api.SessionInfo): Entry {
  const { session_id: id, title, updated_at, pinned, archived } = info;
  return { id, title, updated: Date.parse(updated_at), pinned, archived };
}

const listed = (id: string) => kept.isUuid(id);

/** The session that is shown, as the address names it. */
export const current = signal(start());

/** The conversation that is shown. */
export const conversation = computed(() => open.value.get(current.value)!);

/** Whether a session has an open turn somewhere. */
export function isRunning(id: string): boolean {
  const isHere = open.value.get(id)?.busy.value ?? false;
  return isHere || [...elsewhere.value.values()].some(({ running }) => running.includes(id));
}

kept.watch("sessions", () => {
  local.value = kept.read<Entry[]>("sessions", []);
});

function start(): string {
  const named = location.hash.slice(1);
  if (listed(named)) return named;
  // A conversation that was never begun is used again: it may have a draft.
  const unsent = kept.read("unsent", "");
  return listed(unsent) ? unsent : kept.uuid();
}

// Tabs announce to each other which turns run; nothing depends on it but a mark in the list.
const channel = "BroadcastChannel" in window ? new BroadcastChannel("jarvis") : undefined;
/** How long a tab's word holds, and how often it is repeated, in milliseconds. */
const HOLDS = 5000;
const REPEAT = 2000;

const tab = kept.uuid();

interface Announcement {
  tab: string;
  running: string[];
  /** Whether the tab is new, and has no announcement of the others. */
  isNew?: boolean;
}

channel?.addEventListener("message", ({ data }: MessageEvent<Announcement>) => {
  if (data.isNew) announce();
  const others = new Map(elsewhere.peek());
  others.delete(data.tab);
  if (data.running.length) others.set(data.tab, { ...data, until: Date.now() + HOLDS });
  elsewhere.value = others;
});

function announce(): void {
  const running = [...open.peek().values()].filter(({ busy }) => busy.value).map(({ id }) => id);
  channel?.postMessage({ tab, running } satisfies Announcement);
}
channel?.postMessage({ tab, running: [], isNew: true } satisfies Announcement);

effect(() => {
  for (const { busy } of open.value.values()) void busy.value;
  announce();
});
setInterval(() => {
  if ([...open.peek().values()].some(({ busy }) => busy.peek())) announce();
  const fresh = [...elsewhere.peek()].filter(([, { until }]) => until > Date.now());
  if (fresh.length < elsewhere.peek().size) elsewhere.value = new Map(fresh);
}, REPEAT);

/** Shows a session. The one that was shown stays connected while it has an open turn. */
export function show(id: string): void {
  if (location.hash.slice(1) !== id) history.pushState(null, "", `#${id}`);
  const conversations = new Map(open.peek());
  if (!conversations.has(id)) conversations.set(id, opened(id));
  const others = [...conversations.values()].filter((other) => other.id !== id);
  const ended = others.filter(({ busy }) => !busy.peek());
  const running = others.filter(({ busy }) => busy.peek());
  for (const other of [...ended, ...running.slice(0, -MOST_BACKGROUND)]) {
    other.close();
    conversations.delete(other.id);
  }
  batch(() => {
    current.value = id;
    open.value = conversations;
    unread.value = new Set([...unread.peek()].filter((session) => session !== id));
  });
}

/** Shows a new conversation. */
export function showNew(): void {
  const { isEmpty, loaded } = conversation.value;
  if (!(isEmpty && loaded.value)) {
    show(kept.uuid());
  }
}

function opened(id: string): Conversation {
  const conversation = new Conversation(id);
  conversation.onEnd = (answer: Message) => {
    touch(id);
    if (id !== current.peek()) unread.value = new Set([...unread.peek(), id]);
    // The list is read again at the next end, or when the page becomes visible.
    if (userId.peek()) refresh().catch(() => {});
    ended.value = answer;
  };
  return conversation;
}

/** The answer that ended last, for the status line. */
export const ended = signal<Message | undefined>(undefined);

/** Sends a question in the session that is shown; with `edits`, in the place of that one. */
export function ask(text: string, pictures: Picture[] = [], edits?: string): boolean {
  const { value } = conversation;
  return batch(() => {
    if (!value.ask(text, pictures, edits)) return false;
    if (kept.read("unsent", "") === value.id) kept.write("unsent", undefined);
    touch(value.id, title(text));
    return true;
  });
}

/** The first words of a question. */
function title(text: string): string {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= TITLE_LENGTH) return line;
  const cut = line.slice(0, TITLE_LENGTH);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), TITLE_LENGTH / 2))}…`;
}

/** Moves a session to the top of the list; `otherwise` is the title of one that is new there. */
function touch(id: string, otherwise = ""): void {
  const list = userId.peek() ? remote : local;
  const known = list.peek().find((entry) => entry.id === id);
  if (!known && !otherwise) return;
  const entry = { ...known, id, title: known?.title || otherwise, updated: Date.now() };
  const entries = [entry, ...list.peek().filter((other) => other.id !== id)];
  if (list === local) keepLocal(entries);
  else remote.value = entries;
}

function keepLocal(entries: Entry[]): void {
  local.value = entries.slice(0, MOST_ENTRIES);
  kept.write("sessions", local.value);
}

const learned = new Set<string>();

/** Lists a session that was opened by its address. */
async function learnTitle(id: string): Promise<void> {
  if (userId.peek() || learned.has(id) || local.peek().some((entry) => entry.id === id)) return;
  learned.add(id);
  try {
    const info = await api.describe(id);
    if (!userId.peek() && !local.peek().some((entry) => entry.id === id)) {
      keepLocal([...local.peek(), toEntry(info)].sort((one, two) => two.updated - one.updated));
    }
  } catch {
    // A new one, or another's.
  }
}

/** Returns the title of a session; empty where it is not known. */
export function titleOf(id: string): string {
  return [...remote.value, ...local.value].find((entry) => entry.id === id)?.title ?? "";
}

/** Reads who is signed in, and the user's sessions. Throws where the service does not answer. */
export async function refresh(): Promise<void> {
  if (!api.token.peek()) {
    userId.value = "";
    remote.value = [];
    return;
  }
  if (!userId.peek()) userId.value = (await api.usage()).user_id;
  const entries: Entry[] = [];
  let cursor: string | null = "";
  while (cursor !== null && entries.length < MOST_ENTRIES) {
    const page: api.SessionPage = await api.sessions(cursor);
    entries.push(...page.sessions.map(toEntry));
    cursor = page.next_cursor;
  }
  remote.value = entries;
}

/** Signs in with a token that the service accepts. Throws where it does not. */
export async function signIn(token: string): Promise<void> {
  const { user_id } = await api.usage(token);
  const same = user_id === userId.peek();
  api.setToken(token);
  userId.value = user_id;
  // A socket of the same user takes the new token and stays open.
  if (!same || !conversation.peek().link.send({ type: "auth", token })) reopen();
  await refresh();
}

/** Signs out: the token is forgotten, and what is shown is not the user's any more. */
export function signOut(): void {
  api.setToken("");
  userId.value = "";
  remote.value = [];
  for (const other of open.peek().values()) other.close();
  batch(() => {
    open.value = new Map();
    show(kept.uuid());
  });
}

/** Opens the conversation that is shown anew, as another caller. */
function reopen(): void {
  const id = current.peek();
  for (const other of open.peek().values()) other.close();
  open.value = new Map([[id, opened(id)]]);
}

/** Moves the anonymous sessions of this browser to the user's account; returns how many were moved. */
export async function claimAll(): Promise<number> {
  let moved = 0;
  for (const { id } of local.peek()) {
    try {
      await api.claim(id);
      moved += 1;
    } catch (error) {
      // One that expired, or is another's, can never be claimed.
      if (!(error instanceof api.ApiError && error.status === 404)) throw error;
    }
    keepLocal(local.peek().filter((entry) => entry.id !== id));
  }
  await refresh();
  if (moved) reopen();
  return moved;
}

/** Finds the user's sessions whose title or messages have all of these words. Throws where the service
 * does not answer. */
export async function search(words: string): Promise<{ entries: Entry[]; incomplete: boolean }> {
  const entries: Entry[] = [];
  let incomplete = false;
  let cursor: string | null = "";
  while (cursor !== null && entries.length < MOST_FOUND) {
    const page: api.SessionPage = await api.sessions(cursor, words);
    const matches = page.matches ?? [];
    for (const info of page.sessions) {
      const excerpt = matches.find(({ session_id }) => session_id === info.session_id)?.excerpt;
      entries.push({ ...toEntry(info), ...(excerpt && { excerpt }) });
    }
    incomplete ||= page.incomplete ?? false;
    cursor = page.next_cursor;
  }
  return { entries, incomplete };
}

/** Renames a session. Throws where the service refuses. */
export async function rename(id: string, title: string): Promise<void> {
  changed(await api.rename(id, title));
}

/** Pins or archives a session, or takes that back. Throws where the service refuses. */
export async function mark(id: string, marks: api.Marks): Promise<void> {
  changed(await api.mark(id, marks));
}

/** Lists a session as the service has it now. It keeps its place. */
function changed(info: api.SessionInfo): void {
  for (const list of [local, remote]) {
    list.value = list
      .peek()
      .map((entry) => (entry.id === info.session_id ? { ...toEntry(info), updated: entry.updated } : entry));
  }
  kept.write("sessions", local.value);
}

/** Deletes a session, here and at the service. Throws where the service does not answer. */
export async function remove(id: string): Promise<void> {
  await api.remove(id);
  keepLocal(local.peek().filter((entry) => entry.id !== id));
  remote.value = remote.peek().filter((entry) => entry.id !== id);
  writeDraft(id, "");
  kept.write(`outgoing.${id}`, undefined);
  if (id === current.peek()) show(kept.uuid());
}

/** Reads what was written and not sent in a session. */
export function readDraft(id: string): string {
  return kept.read<Record<string, string>>("drafts", {})[id] ?? "";
}

/** Keeps what was written and not sent in a session. */
export function writeDraft(id: string, text: string): void {
  const drafts = kept.read<Record<string, string>>("drafts", {});
  // The one that was written last is the last to go.
  delete drafts[id];
  if (text) drafts[id] = text;
  const entries = Object.entries(drafts).slice(-MOST_DRAFTS);
  kept.write("drafts", entries.length ? Object.fromEntries(entries) : undefined);
  if (text && isNew(id)) kept.write("unsent", id);
}

function isNew(id: string): boolean {
  return ![...local.peek(), ...remote.peek()].some((entry) => entry.id === id);
}

/** Opens the session that the address names, and follows the address from now on. */
export function begin(): void {
  const id = current.peek();
  // The address names the session, so that a reload and a second tab find it. What follows the # stays
  // in the browser.
  history.replaceState(null, "", `#${id}`);
  open.value = new Map([[id, opened(id)]]);
  effect(() => {
    const { id, loaded, messages } = conversation.value;
    if (loaded.value && messages.value.length > 0) void learnTitle(id);
  });
  addEventListener("hashchange", follow);
  addEventListener("popstate", follow);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && userId.peek()) refresh().catch(() => {});
  });
}

function follow(): void {
  const named = location.hash.slice(1);
  if (listed(named) && named !== current.peek()) show(named);
}
