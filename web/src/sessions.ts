/** The list of sessions, and the conversations that this tab has open. An anonymous caller's list is
 * kept in the browser, a user's by the service. */

import { batch, computed, effect, signal } from "@preact/signals";
import * as api from "./api";
import { attach, attachedKeys, detach, hasAttached } from "./attached";
import { Conversation } from "./conversation";
import { draftChanges, keepDraft, keepDrafts, readDraft } from "./drafts";
import * as kept from "./kept";
import type { Message } from "./message";
import { forget, undelivered } from "./outbox";
import type { Outgoing } from "./outbox";
import { dropPicturesBut } from "./pictures";
import type { Picture } from "./pictures";
import { settings } from "./settings";

export interface Entry {
  id: string;
  title: string;
  /** Milliseconds since 1970. */
  updated: number;
  pinned?: boolean;
  archived?: boolean;
  /** Whether an answer was being written when the service listed the session. */
  running?: boolean;
  /** The text by which a search found it, where it was not its title. */
  excerpt?: string;
}

/** Sessions that the browser remembers, at most. */
const MOST_ENTRIES = 500;
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
/** Anonymous sessions in which the service said that an answer is being written. */
const afar = signal<ReadonlySet<string>>(new Set());
/** Sessions whose answer ended while another one was shown. */
export const unread = signal<ReadonlySet<string>>(new Set());
const open = signal<ReadonlyMap<string, Conversation>>(new Map());

function toEntry(info: api.SessionInfo): Entry {
  const { session_id: id, title, updated_at, pinned, archived, running } = info;
  return { id, title, updated: Date.parse(updated_at), pinned, archived, running };
}

const listed = (id: string) => kept.isUuid(id);

/** The session that is shown, as the address names it. */
export const current = signal(start());

/** The conversation that is shown. */
export const conversation = computed(() => open.value.get(current.value)!);

/** Whether a session has an open turn somewhere. */
export function isRunning(id: string): boolean {
  const here = open.value.get(id);
  if (here) return here.busy.value;
  const isListed = remote.value.some((entry) => entry.id === id && entry.running);
  return isListed || afar.value.has(id) || [...elsewhere.value.values()].some(({ running }) => running.includes(id));
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
/** How often it is asked what other devices do in the newest sessions while the page is seen, in
 * milliseconds. */
const REFRESH = 15_000;
/** How long ago a session was used that may have an answer that is being written. */
const RECENT = 3_600_000;
/** Anonymous sessions of which that is asked, at most: each costs a request. */
const MOST_ASKED = 4;

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

/** Conversations that this tab began and in which nothing was asked yet, the last shown last. */
const begun: string[] = [];

/** Shows a new conversation: one that was begun and has a draft is gone on with. */
export function showNew(): void {
  const { id, isEmpty, loaded } = conversation.value;
  if (isEmpty && loaded.value) return;
  const isWaiting = (other: string) => other !== id && isNew(other) && hasDraft(other);
  const unsent = kept.read("unsent", "");
  show(begun.findLast(isWaiting) ?? (listed(unsent) && isWaiting(unsent) ? unsent : begin()));
}

/** Whether something was written, or added, and not sent in a session. */
const hasDraft = (id: string) => readDraft(id) !== "" || hasAttached(id);

/** Returns the identifier of a conversation that was not there before. */
function begin(): string {
  const id = kept.uuid();
  begun.push(id);
  return id;
}

function opened(id: string): Conversation {
  const conversation = new Conversation(id, () => userId.peek());
  conversation.onEnd = (answer: Message) => {
    touch(id);
    if (conversation.messages.peek().length <= 2) void learnModelsTitle(id);
    if (id !== current.peek()) unread.value = new Set([...unread.peek(), id]);
    // The list is read again soon, where this fails.
    if (userId.peek()) refreshNewest().catch(() => {});
    ended.value = answer;
    openUndelivered();
  };
  return conversation;
}

/** Opens the conversations in which a message of an earlier visit is on its way still, as far as there
 * is room; the others follow as these end. */
function openUndelivered(): void {
  if (api.token.peek() && !userId.peek()) return;
  const conversations = new Map(open.peek());
  for (const other of [...conversations.values()]) {
    if (other.id === current.peek() || other.busy.peek()) continue;
    other.close();
    conversations.delete(other.id);
  }
  for (const id of undelivered(userId.peek())) {
    if (conversations.size > MOST_BACKGROUND) break;
    if (listed(id) && !conversations.has(id)) conversations.set(id, opened(id));
  }
  open.value = conversations;
}

/** The answer that ended last, or the question that was refused last, for the status line. */
export const ended = signal<Message | undefined>(undefined);

/** Sends a question in the session that is shown; with `edits`, in the place of that one. */
export function ask(text: string, pictures: Picture[] = [], edits?: string): boolean {
  const { value } = conversation;
  return batch(() => {
    if (!value.ask(text, pictures, edits)) return false;
    asked(value.id, text);
    return true;
  });
}

/** Asks a question of the session that is shown again, which was refused. */
export function askAgain(question: Message): void {
  const { value } = conversation;
  batch(() => {
    if (value.askAgain(question)) asked(value.id, question.text.peek());
  });
}

function asked(id: string, text: string): void {
  if (kept.read("unsent", "") === id) kept.write("unsent", undefined);
  touch(id, title(text));
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
  if (list === remote) remote.value = entries;
  else keepLocal((all) => [entry, ...all.filter((other) => other.id !== id)]);
}

/** Changes the list of this browser, to which another tab may have added. */
function keepLocal(change: (entries: Entry[]) => Entry[]): void {
  local.value = change(kept.read<Entry[]>("sessions", local.peek())).slice(0, MOST_ENTRIES);
  kept.write("sessions", local.value);
}

/** How long the model may take for a title after the first answer, in milliseconds. */
const TITLE_PAUSE = 4000;

/** Reads the title of a session some time after its first answer: the model may have written it. */
async function learnModelsTitle(id: string): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, TITLE_PAUSE));
  try {
    changed(await api.describe(id));
  } catch {
    // It is read again with the list.
  }
}

const learned = new Set<string>();

/** Lists a session that was opened by its address. */
async function learnTitle(id: string): Promise<void> {
  if (userId.peek() || learned.has(id) || local.peek().some((entry) => entry.id === id)) return;
  learned.add(id);
  try {
    const info = await api.describe(id);
    if (!userId.peek() && !local.peek().some((entry) => entry.id === id)) {
      const isOther = (entry: Entry) => entry.id !== id;
      keepLocal((all) =>
        [...all.filter(isOther), toEntry(info)].sort((one, two) => two.updated - one.updated),
      );
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
  if (!userId.peek()) {
    userId.value = (await api.usage()).user_id;
    openUndelivered();
  }
  const entries: Entry[] = [];
  let cursor: string | null = "";
  while (cursor !== null && entries.length < MOST_ENTRIES) {
    const page: api.SessionPage = await api.sessions(cursor);
    entries.push(...page.sessions.map(toEntry));
    cursor = page.next_cursor;
  }
  remote.value = entries;
}

/** Reads the newest page of the user's sessions again: those that other devices use are in it. Older ones
 * stay as they were listed. Throws where the service does not answer. */
async function refreshNewest(): Promise<void> {
  const page = await api.sessions("");
  const newest = page.sessions.map(toEntry);
  const ids = new Set(newest.map(({ id }) => id));
  const oldest = page.next_cursor === null ? 0 : (newest.at(-1)?.updated ?? 0);
  const isOlder = ({ id, updated }: Entry) => !ids.has(id) && updated < oldest;
  const older = remote.peek().filter(isOlder);
  remote.value = [...newest, ...older.map((entry) => ({ ...entry, running: false }))];
}

/** Asks whether an answer is being written in the newest anonymous sessions that this tab has not open. Those
 * that were used long ago are not asked about: many pages may share the limit of one address. */
async function askNewest(): Promise<void> {
  const since = Date.now() - RECENT;
  const closed = local.peek().filter(({ id, updated }) => updated > since && !open.peek().has(id));
  const asked = closed.slice(0, MOST_ASKED).map(({ id }) => api.describe(id).catch(() => undefined));
  const infos = await Promise.all(asked);
  afar.value = new Set(infos.flatMap((info) => (info?.running ? [info.session_id] : [])));
}

/** Signs in with a token that the service accepts. Throws where it does not. */
export async function signIn(token: string): Promise<void> {
  const { user_id } = await api.usage(token);
  const same = user_id === userId.peek();
  if (!same && userId.peek()) forgetUser();
  api.setToken(token);
  userId.value = user_id;
  // A socket of the same user takes the new token and stays open.
  if (same) renew(token);
  else changeCaller();
  await refresh();
  openUndelivered();
}

function renew(token: string): void {
  for (const { link } of open.peek().values()) {
    if (!link.send({ type: "auth", token })) link.restart();
  }
}

/** The anonymous conversation that was shown before the sign-in. */
let before = "";

/** Opens what is shown anew, as another caller. An anonymous conversation stays where it is, and a new one
 * is shown in its place: to the user it would be one that does not exist. */
function changeCaller(): void {
  before = local.peek().some(({ id }) => id === current.peek()) ? current.peek() : "";
  for (const other of open.peek().values()) other.close();
  batch(() => {
    open.value = new Map();
    show(before ? begin() : current.peek());
  });
}

/** Signs out: the token is forgotten, and what is shown is not the user's any more. */
export function signOut(): void {
  forgetUser();
  api.setToken("");
  userId.value = "";
  remote.value = [];
  for (const other of open.peek().values()) other.close();
  batch(() => {
    open.value = new Map();
    show(begin());
  });
}

/** Forgets what the user left in this browser: drafts and their images, messages on their way, and the
 * instructions. What belongs to the anonymous conversations stays. */
function forgetUser(): void {
  const anonymous = new Set(local.peek().map(({ id }) => id));
  const isKept = (id: string) => anonymous.has(id);
  detach((id) => !isKept(id));
  keepDrafts((drafts) => drafts.filter(([key]) => isKept(key.split("/")[0]!)));
  for (const key of kept.keys("outgoing.")) {
    const id = key.slice("outgoing.".length);
    if (!isKept(id)) forget(id);
  }
  kept.write("unsent", undefined);
  begun.length = 0;
  settings.value = { ...settings.peek(), system: "" };
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
    keepLocal((all) => all.filter((entry) => entry.id !== id));
  }
  await refresh();
  const { id, isEmpty } = conversation.peek();
  // Whoever moved the conversation that was shown goes on with it.
  if (moved && before && isEmpty && !hasDraft(id)) show(before);
  before = "";
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
  const renewed = (entries: Entry[]) =>
    entries.map((entry) =>
      entry.id === info.session_id ? { ...toEntry(info), updated: entry.updated } : entry,
    );
  remote.value = renewed(remote.peek());
  keepLocal(renewed);
}

/** Deletes a session, here and at the service. Throws where the service does not answer. */
export async function remove(id: string): Promise<void> {
  const shown = open.peek().get(id);
  // A message that arrived after the deletion would begin the session anew.
  shown?.outbox.close();
  try {
    await api.remove(id);
  } catch (error) {
    shown?.outbox.reopen();
    throw error;
  }
  keepLocal((all) => all.filter((entry) => entry.id !== id));
  remote.value = remote.peek().filter((entry) => entry.id !== id);
  keepDrafts((drafts) => drafts.filter(([key]) => key.split("/")[0] !== id));
  void attach(id, []);
  forget(id);
  batch(() => {
    shown?.close();
    open.value = new Map([...open.peek()].filter(([other]) => other !== id));
    if (id === current.peek()) show(begin());
  });
}

/** Keeps what was written and not sent in a session; a new one is found again by it. */
export function writeDraft(id: string, text: string): void {
  keepDraft(id, text);
  if (text) noteDraft(id);
}

/** Keeps the images that wait in a session; a new one is found again by them, too. */
export function attachImages(id: string, pictures: Picture[]): void {
  void attach(id, pictures);
  if (pictures.length) noteDraft(id);
}

function noteDraft(id: string): void {
  if (!isNew(id)) return;
  kept.write("unsent", id);
  if (!begun.includes(id)) begun.push(id);
}

/** Puts a text into the field for the next question, behind what is there, and its images where none are
 * there. */
export function writeAgain(text: string, pictures: Picture[]): void {
  const { id } = conversation.peek();
  const draft = readDraft(id);
  writeDraft(id, draft ? `${draft}\n${text}` : text);
  if (pictures.length && !hasAttached(id)) attachImages(id, pictures);
  draftChanges.value += 1;
  document.getElementById("question")?.focus();
}

function isNew(id: string): boolean {
  return ![...local.peek(), ...remote.peek()].some((entry) => entry.id === id);
}

/** Opens the session that the address names, and follows the address from now on. */
export function follow(): void {
  const id = current.peek();
  // The address names the session, so that a reload and a second tab find it. What follows the # stays
  // in the browser.
  history.replaceState(null, "", `#${id}`);
  open.value = new Map([[id, opened(id)]]);
  effect(() => {
    const { id, loaded, messages } = conversation.value;
    if (loaded.value && messages.value.length > 0) void learnTitle(id);
  });
  addEventListener("hashchange", go);
  addEventListener("popstate", go);
  openUndelivered();
  const outgoing = () => kept.keys("outgoing.").flatMap((key) => kept.read<Outgoing[]>(key, []));
  const due = () => [...outgoing().map(({ message_id }) => message_id), ...attachedKeys()];
  void dropPicturesBut(() => new Set(due()));
  const ifSeen = (readUsers: () => Promise<void>) => () => {
    if (document.visibilityState !== "visible") return;
    if (userId.peek()) readUsers().catch(() => {});
    else if (!api.token.peek()) void askNewest();
  };
  document.addEventListener("visibilitychange", ifSeen(refresh));
  setInterval(ifSeen(refreshNewest), REFRESH);
}

function go(): void {
  const named = location.hash.slice(1);
  if (listed(named) && named !== current.peek()) show(named);
}
