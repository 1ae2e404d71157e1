/** The images that wait for the next question of a session. The browser keeps them until it is sent, and
 * every tab shows the same. */

import { signal } from "@preact/signals";
import * as kept from "./kept";
import { dropPictures, keepPictures, keptPictures } from "./pictures";
import type { Picture } from "./pictures";

/** Sessions whose images are kept, at most. */
const MOST_SESSIONS = 8;

/** The last change of the images of each session, the newest last; empty while they are being written. */
type Changes = Record<string, string>;

const readChanges = () => kept.read<Changes>("attached", {});
let changes = readChanges();
/** The images, as far as this tab has read them. */
const attached = signal<ReadonlyMap<string, Picture[]>>(new Map());

const keyOf = (session: string) => `draft/${session}`;

/** Returns the keys under which images are kept. */
export const attachedKeys = () => Object.keys(readChanges()).map(keyOf);

/** Whether images wait in a session. */
export const hasAttached = (session: string) => session in readChanges();

/** Whether images wait in a session that this tab has not read. */
export const isUnread = (session: string) => hasAttached(session) && !attached.peek().has(session);

/** Returns the images of a session that this tab has read. */
export const attachedTo = (session: string) => attached.value.get(session) ?? [];

function show(session: string, pictures: Picture[]): void {
  attached.value = new Map(attached.peek()).set(session, pictures);
}

/** Reads the images of a session, once in this tab. */
export async function readAttached(session: string): Promise<Picture[]> {
  const known = () => attached.peek().get(session);
  if (!known()) {
    let change: string | undefined;
    let pictures: Picture[];
    // Another tab may change them meanwhile.
    do {
      change = readChanges()[session];
      pictures = change === undefined ? [] : await keptPictures(keyOf(session));
    } while (change !== readChanges()[session]);
    if (!known()) show(session, pictures);
  }
  return known() ?? [];
}

/** Puts images in the place of those of a session. */
export async function attach(session: string, pictures: Picture[]): Promise<void> {
  show(session, pictures);
  // A tab that starts drops what has no entry, so the entry comes first.
  note(session, pictures.length ? "" : undefined);
  if (!pictures.length) return dropPictures(keyOf(session));
  const isKept = await keepPictures(keyOf(session), pictures);
  if (hasAttached(session)) note(session, isKept ? kept.uuid() : undefined);
}

/** Drops the images of these sessions, in every tab. */
export function detach(isDue: (session: string) => boolean): void {
  for (const session of new Set([...Object.keys(readChanges()), ...attached.peek().keys()])) {
    if (isDue(session)) void attach(session, []);
  }
}

/** Notes the change of a session; undefined removes its entry. */
function note(session: string, change: string | undefined): void {
  const { [session]: before, ...others } = readChanges();
  const entries = Object.entries(others);
  if (change !== undefined) entries.push([session, change]);
  const over = entries.splice(0, Math.max(0, entries.length - MOST_SESSIONS));
  for (const [oldest] of over) void dropPictures(keyOf(oldest));
  changes = Object.fromEntries(entries);
  kept.write("attached", entries.length ? changes : undefined);
}

kept.watch("attached", () => {
  const before = changes;
  changes = readChanges();
  for (const session of attached.peek().keys()) {
    const change = changes[session];
    if (change === before[session]) continue;
    if (change === undefined) show(session, []);
    else if (change) void follow(session, change);
  }
});

/** Shows the images that another tab has attached. */
async function follow(session: string, change: string): Promise<void> {
  const pictures = await keptPictures(keyOf(session));
  if (pictures.length && changes[session] === change) show(session, pictures);
}
