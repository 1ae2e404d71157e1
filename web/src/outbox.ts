/** The messages of a conversation that are on their way to the service. Each is kept in the browser
 * until the service has it, also over a reload, and so is one that was refused, until its user has seen
 * to it. Its identifier is the idempotency key, so that sending it again never asks twice. */

import { signal } from "@preact/signals";
import { ApiError, askWithImages } from "./api";
import * as kept from "./kept";
import { dropPictures, keepPictures, keptPictures } from "./pictures";
import type { Picture } from "./pictures";
import type { Failure } from "./wire";

export interface Outgoing {
  message_id: string;
  message: string;
  /** What is asked anew: the question in whose place this one is asked, or the answer beside which
   * another one is generated. */
  edits?: string;
  regenerates?: string;
  /** The number of its images, which the browser keeps apart from it. */
  pictures?: number;
  /** The user who asks; absent where nobody signed in. */
  user?: string;
  /** Why it was refused. It is not sent any more. */
  failure?: Failure;
  [field: string]: unknown;
}

/** Returns the fields that the service reads. */
function fieldsOf(outgoing: Outgoing): Record<string, unknown> {
  const { edits, regenerates, pictures, user, failure, ...fields } = outgoing;
  return fields;
}

/** Returns what is sent over the WebSocket. */
function sent(outgoing: Outgoing): object {
  const { edits, regenerates } = outgoing;
  const { message_id, ...fields } = fieldsOf(outgoing);
  if (!edits && !regenerates) return { type: "chat", message_id, ...fields };
  const type = edits ? "edit" : "regenerate";
  return { ...fields, type, message_id: edits ?? regenerates, idempotency_key: message_id };
}

/** Messages on their way, at most: more turns of one session would not be accepted. */
export const MOST_OUTGOING = 8;
/** Messages that were refused and are kept, at most. */
const MOST_REFUSED = 8;
/** The pause before a message is sent again, in milliseconds, unless the service names another. */
const PAUSE = 1000;
/** How long a message whose outcome is not known is sent again, in milliseconds, while the service can
 * be reached. */
const LONGEST_DOUBT = 120_000;

/** The codes after which the service may have accepted the message, or will as soon as it is sent to
 * another replica. */
const UNKNOWN = new Set([
  "body_timeout",
  "body_unreadable",
  "draining",
  "internal",
  "no_replica",
  "status_500",
  "status_502",
  "status_503",
  "status_504",
  "store_unavailable",
  "task_died",
  "timeout",
  "too_many_connections",
  "too_many_requests",
  "unreachable",
]);

/** Whether a failure leaves open what became of its message. */
export function isUnknown({ code }: Failure): boolean {
  return UNKNOWN.has(code);
}

/** Returns the sessions with messages of this user that no tab has delivered yet. */
export function undelivered(user: string): string[] {
  const isDue = (one: Outgoing) => !one.failure && (one.user ?? "") === user;
  return kept
    .keys("outgoing.")
    .filter((key) => kept.read<Outgoing[]>(key, []).some(isDue))
    .map((key) => key.slice("outgoing.".length));
}

/** Forgets what is on its way in a session, and what was refused there. */
export function forget(session: string): void {
  for (const one of kept.read<Outgoing[]>(`outgoing.${session}`, [])) {
    if (one.pictures) void dropPictures(one.message_id);
  }
  kept.write(`outgoing.${session}`, undefined);
}

/** Whom an outbox reports to. */
export interface OutboxOwner {
  /** Sends a message over the WebSocket; false where there is none. */
  send(message: object): boolean;
  /** A message with images was accepted. */
  uploaded(outgoing: Outgoing, generation: string): void;
  /** A message was refused. */
  refused(outgoing: Outgoing, failure: Failure): void;
}

export class Outbox {
  /** What is on its way, in its order. */
  readonly items = signal<Outgoing[]>([]);
  /** Why the service does not take a message yet, where it said so. */
  readonly trouble = signal<Failure | undefined>(undefined);
  /** What this browser kept of an earlier visit: on its way, and refused. */
  readonly stored: Outgoing[];
  private readonly key: string;
  /** The message that was sent on this connection. */
  private onWire = "";
  /** Since when the outcome of a message is in doubt. */
  private readonly doubts = new Map<string, number>();
  private readonly pictures = new Map<string, Picture[]>();
  private uploading = "";
  private aborts = new AbortController();
  private timer = 0;
  private pausedUntil = 0;

  constructor(
    private readonly session: string,
    private readonly owner: OutboxOwner,
  ) {
    this.key = `outgoing.${session}`;
    this.stored = kept.read<Outgoing[]>(this.key, []);
    this.items.value = this.stored.filter(({ failure }) => !failure);
  }

  get isFull(): boolean {
    return this.items.value.length >= MOST_OUTGOING;
  }

  /** Sends a message, and keeps it until the service has it. */
  add(outgoing: Outgoing, pictures: Picture[] = []): void {
    const item = pictures.length ? { ...outgoing, pictures: pictures.length } : outgoing;
    if (pictures.length) {
      this.pictures.set(item.message_id, pictures);
      void keepPictures(item.message_id, pictures);
    }
    this.items.value = [...this.items.value, item];
    this.keep((all) => [...all.filter(({ message_id }) => message_id !== item.message_id), item]);
    this.pump();
  }

  /** Keeps a message as one that was refused. */
  addRefused(outgoing: Outgoing, pictures: Picture[], failure: Failure): void {
    const item = { ...outgoing, ...(pictures.length && { pictures: pictures.length }), failure };
    if (pictures.length) void keepPictures(item.message_id, pictures);
    this.keep((all) => [...all, item]);
  }

  /** A connection is open: what is on its way is sent on it. */
  connected(): void {
    this.onWire = "";
    this.pump();
  }

  /** The service has a message. */
  delivered(messageId: string): void {
    if (this.onWire === messageId) this.onWire = "";
    this.doubts.delete(messageId);
    if (this.doubts.size === 0) this.trouble.value = undefined;
    this.discard(messageId);
    this.pump();
  }

  /** A message failed: it is sent again where its outcome is not known, and refused else. False where
   * it is none of these. */
  failed(messageId: string, failure: Failure): boolean {
    const item = this.items.value.find(({ message_id }) => message_id === messageId);
    if (!item) return false;
    if (this.onWire === messageId) this.onWire = "";
    if (this.mayRetry(messageId, failure)) this.pause(failure);
    else this.refuse(item, failure);
    return true;
  }

  /** Takes a message off what is kept. */
  discard(messageId: string): void {
    this.items.value = this.items.value.filter(({ message_id }) => message_id !== messageId);
    this.keep((all) => all.filter(({ message_id }) => message_id !== messageId));
    if (this.pictures.delete(messageId) || this.isStoredWithPictures(messageId)) {
      void dropPictures(messageId);
    }
  }

  /** Returns the message that was refused under this identifier, as it was sent. */
  refusedItem(messageId: string): Outgoing | undefined {
    const isIt = ({ message_id, failure }: Outgoing) => message_id === messageId && failure;
    const item = kept.read<Outgoing[]>(this.key, []).find(isIt);
    if (!item) return undefined;
    const { failure, ...outgoing } = item;
    return outgoing;
  }

  /** A snapshot came, which may have passed over the acceptance of what is on its way: that is sent once
   * more, unless it is known to be accepted soon. */
  passedOver(): void {
    const id = this.onWire;
    if (!id) return;
    window.setTimeout(() => {
      if (this.onWire === id) this.connected();
    }, 2 * PAUSE);
  }

  /** Ends every upload; what is on its way stays kept. */
  close(): void {
    clearTimeout(this.timer);
    this.aborts.abort();
  }

  /** Goes on after `close`. */
  reopen(): void {
    this.aborts = new AbortController();
    this.pausedUntil = 0;
    this.connected();
  }

  /** Sends what may be sent now: the first message, as turns run in the order of their acceptance, and
   * one that is not accepted at once is sent again later. */
  private pump(): void {
    if (this.aborts.signal.aborted || Date.now() < this.pausedUntil) return;
    const item = this.items.value[0];
    if (!item) return;
    if (item.pictures) {
      void this.upload(item);
    } else if (this.onWire !== item.message_id && this.owner.send(sent(item))) {
      this.onWire = item.message_id;
    }
  }

  private pause({ retryAt }: Failure): void {
    const wait = Math.max(PAUSE, (retryAt ?? 0) - Date.now());
    this.pausedUntil = Date.now() + wait;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.pausedUntil = 0;
      this.pump();
    }, wait);
  }

  /** Whether a message that failed is sent again. */
  private mayRetry(messageId: string, failure: Failure): boolean {
    if (!isUnknown(failure)) return false;
    const since = this.doubts.get(messageId) ?? Date.now();
    this.doubts.set(messageId, since);
    this.trouble.value = failure;
    return Date.now() - since < LONGEST_DOUBT;
  }

  private refuse(item: Outgoing, failure: Failure): void {
    const { message_id: id } = item;
    this.doubts.delete(id);
    if (this.doubts.size === 0) this.trouble.value = undefined;
    this.items.value = this.items.value.filter(({ message_id }) => message_id !== id);
    const others = (all: Outgoing[]) => all.filter(({ message_id }) => message_id !== id);
    // Another answer has no words of its own that could be lost.
    this.keep((all) => (item.regenerates ? others(all) : [...others(all), { ...item, failure }]));
    this.owner.refused(item, failure);
    this.pump();
  }

  /** Sends a question with images, again and again until the service has it or refuses it. */
  private async upload(item: Outgoing): Promise<void> {
    if (this.uploading) return;
    const { message_id: id } = item;
    const { signal } = this.aborts;
    const isWanted = () => !signal.aborted && this.items.value.includes(item);
    this.uploading = id;
    try {
      const pictures = await this.picturesOf(item);
      if (!isWanted()) return;
      if (pictures.length < (item.pictures ?? 0)) return this.refuse(item, LOST);
      const question = {
        ...fieldsOf(item),
        session_id: this.session,
        images: pictures.map(({ data }) => data),
      };
      while (isWanted()) {
        const failure = await askWithImages(id, question, signal).then(
          (generation) => {
            if (isWanted()) this.owner.uploaded(item, generation);
            return undefined;
          },
          (error: unknown) => (error instanceof ApiError ? error.failure : NO_REPLY),
        );
        if (!failure || !isWanted()) return;
        // While nothing can be reached, there is no end to it, as with a text.
        if (failure.code !== "unreachable" && !this.mayRetry(id, failure)) {
          return this.refuse(item, failure);
        }
        const wait = Math.max(PAUSE, (failure.retryAt ?? 0) - Date.now());
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    } finally {
      this.uploading = "";
      // One that was broken off goes on where the outbox was opened again meanwhile.
      if (signal.aborted || this.items.value[0] !== item) this.pump();
    }
  }

  /** Returns the images of a message, from this tab or from what the browser keeps. */
  async picturesOf({ message_id: id }: Outgoing): Promise<Picture[]> {
    const pictures = this.pictures.get(id) ?? (await keptPictures(id));
    this.pictures.set(id, pictures);
    return pictures;
  }

  private isStoredWithPictures(messageId: string): boolean {
    return this.stored.some(({ message_id, pictures }) => message_id === messageId && pictures);
  }

  /** Changes what the browser keeps, where another tab may have added to it. */
  private keep(change: (all: Outgoing[]) => Outgoing[]): void {
    const all = change(kept.read<Outgoing[]>(this.key, []));
    const refused = all.filter(({ failure }) => failure).slice(-MOST_REFUSED);
    const due = all.filter(({ failure }) => !failure).slice(-MOST_OUTGOING);
    const both = [...refused, ...due];
    kept.write(this.key, both.length ? both : undefined);
  }
}

const LOST: Failure = {
  code: "images_lost",
  message: "The images of this question were lost with the tab that sent them; add them again.",
  retryable: false,
};
const NO_REPLY: Failure = {
  code: "unreachable",
  message: "The service cannot be reached; check the connection.",
  retryable: true,
};
