/** One message of a conversation, and what is known of it. */

import { batch, signal } from "@preact/signals";
import type { Picture, StoredPictures } from "./pictures";
import type { ContextReport, Continuation, Failure, Siblings, StoredMessage, Usage } from "./wire";

export type Status =
  /** A question that the service has not accepted yet. */
  | "sending"
  /** A question that the service refused. */
  | "refused"
  /** An answer that waits for a model host, or for the turn before it. */
  | "waiting"
  | "streaming"
  | "complete"
  | "cancelled"
  | "failed";

/** What is known of an answer beside its text. */
export interface Notes {
  model?: string;
  position?: number;
  eta?: number | null;
  finish?: string;
  usage?: Usage;
  context?: ContextReport;
  continued?: Continuation[];
  failure?: Failure;
}

/** A text is drawn again after twice as long as the last time took: one that is slow to draw, such as a
 * table of a thousand rows, leaves the browser time for its user. */
const REST = 2;
/** A browser that shows nothing, or sleeps, does not count as slow, in milliseconds. */
const LONGEST_REST = 500;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** One message. The text of an answer grows outside of the signals, and is shown once a frame. */
export class Message {
  readonly text = signal("");
  readonly reasoning = signal("");
  readonly status = signal<Status>("complete");
  readonly notes = signal<Notes>({});
  /** The images of a question: those that this tab sent, those that the service has, or their number. */
  readonly pictures = signal<Picture[] | StoredPictures | number>(0);
  /** The alternatives of the message, where it has some. */
  readonly siblings = signal<Siblings | undefined>(undefined);
  /** The question in whose place this one is asked, until the service has it. */
  edits?: string | undefined;
  private raw = "";
  private bytes = 0;
  private rawReasoning = "";
  private reasoningBytes = 0;
  private frame = 0;
  private drawn = 0;
  private cost = 0;

  constructor(
    public id: string,
    readonly role: "user" | "assistant",
    status: Status,
    text = "",
  ) {
    this.status.value = status;
    this.replace(text);
  }

  /** Adds a piece. One that is there already is left out; false where one before it is missing. */
  append(content: string, offset: number, kind: "text" | "reasoning"): boolean {
    const have = kind === "text" ? this.bytes : this.reasoningBytes;
    const piece = encoder.encode(content);
    if (offset > have) return false;
    if (offset + piece.length <= have) return true;
    const rest = offset === have ? content : decoder.decode(piece.subarray(have - offset));
    if (kind === "text") {
      this.raw += rest;
      this.bytes = offset + piece.length;
    } else {
      this.rawReasoning += rest;
      this.reasoningBytes = offset + piece.length;
    }
    this.frame ||= requestAnimationFrame((now) => this.showLater(now));
    return true;
  }

  /** Shows the text in this frame, or in one that comes when the browser has rested. */
  private showLater(now: number): void {
    if (now - this.drawn < Math.min(this.cost * REST, LONGEST_REST)) {
      this.frame = requestAnimationFrame((later) => this.showLater(later));
      return;
    }
    this.drawn = now;
    this.show();
    const begun = performance.now();
    // After the frame was laid out and painted.
    setTimeout(() => {
      this.cost = performance.now() - begun;
    });
  }

  /** Takes back what came after this many bytes; with 0 the reasoning, too. */
  cut(bytes: number): void {
    this.raw = decoder.decode(encoder.encode(this.raw).subarray(0, bytes));
    this.bytes = Math.min(bytes, this.bytes);
    if (bytes === 0) [this.rawReasoning, this.reasoningBytes] = ["", 0];
    this.show();
  }

  /** Replaces the whole text. */
  replace(text: string, reasoning = this.rawReasoning): void {
    if (text !== this.raw) this.bytes = encoder.encode(text).length;
    if (reasoning !== this.rawReasoning) this.reasoningBytes = encoder.encode(reasoning).length;
    [this.raw, this.rawReasoning] = [text, reasoning];
    this.show();
  }

  /** Takes over what is stored of the message. */
  update(stored: Message): void {
    if (stored.status.value !== "complete" || this.text.value !== stored.text.value) {
      this.replace(stored.text.value, stored.reasoning.value);
    }
    this.notes.value = stored.notes.value;
    this.siblings.value = stored.siblings.value;
    this.status.value = stored.status.value;
    // The images themselves are better than their number.
    if (!Array.isArray(this.pictures.value)) this.pictures.value = stored.pictures.value;
  }

  note(notes: Notes): void {
    this.notes.value = { ...this.notes.value, ...notes };
  }

  get isOpen(): boolean {
    return this.status.value === "waiting" || this.status.value === "streaming";
  }

  /** Whether the service has it, and it does not change any more. */
  get isStored(): boolean {
    const { value } = this.status;
    return value === "complete" || value === "cancelled" || value === "failed";
  }

  private show(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    batch(() => {
      this.text.value = this.raw;
      this.reasoning.value = this.rawReasoning;
    });
  }
}

/** The identifier of the question of a generation: the same with the last bit flipped. */
export function questionOf(generation: string): string {
  const last = (Number.parseInt(generation.slice(-1), 16) ^ 1).toString(16);
  return generation.slice(0, -1) + last;
}

/** A message as it is stored; undefined where it is no one's words. */
export function fromStored(stored: StoredMessage): Message | undefined {
  if (stored.role !== "user" && stored.role !== "assistant") return undefined;
  const id = stored.role === "assistant" ? (stored.generation_id ?? stored.id) : stored.id;
  const message = new Message(id, stored.role, stored.status ?? "complete", stored.content);
  if (stored.thinking) message.replace(stored.content, stored.thinking);
  if (stored.images) message.pictures.value = { digests: stored.images.map(({ digest }) => digest) };
  message.siblings.value = stored.siblings;
  const { model, finish_reason: finish, usage, context, continued, error } = stored;
  message.notes.value = {
    ...(model && { model }),
    ...(finish && { finish }),
    ...(usage && { usage }),
    ...(context && { context }),
    ...(continued && { continued }),
    ...(error && {
      failure: {
        code: error.code ?? "internal",
        message: error.message ?? "The answer could not be completed.",
        retryable: true,
      },
    }),
  };
  return message;
}
