/** One conversation as this page knows it: the stored messages, the answers that grow, and the
 * messages that wait to be accepted. Every change comes from an event of the service, except a
 * message that was just sent. */

import { batch, computed, signal } from "@preact/signals";
import { ApiError, askWithImages } from "./api";
import * as kept from "./kept";
import { Link } from "./link";
import type { LinkOwner } from "./link";
import type { Picture } from "./pictures";
import { request } from "./settings";
import type {
  ContextReport,
  Continuation,
  Failure,
  ServerEvent,
  Siblings,
  StoredMessage,
  Usage,
} from "./wire";

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

/** The longest question, in characters. */
export const LONGEST_QUESTION = 32_768;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** One message. The text of an answer grows outside of the signals, and is shown once a frame. */
export class Message {
  readonly text = signal("");
  readonly reasoning = signal("");
  readonly status = signal<Status>("complete");
  readonly notes = signal<Notes>({});
  /** The images of a question: those that this tab sent, and else their number alone. */
  readonly pictures = signal<Picture[] | number>(0);
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

  note(notes: Notes): void {
    this.notes.value = { ...this.notes.value, ...notes };
  }

  get isOpen(): boolean {
    return this.status.value === "waiting" || this.status.value === "streaming";
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

/** A message on its way. It is kept until the service has it, also over a reload; its identifier is
 * the idempotency key, so that sending it again never asks twice. */
interface Outgoing {
  message_id: string;
  message: string;
  /** What is asked anew: the question in whose place this one is asked, or the answer beside which
   * another one is generated. */
  edits?: string;
  regenerates?: string;
  [field: string]: unknown;
}

/** Returns what is sent over the WebSocket. */
function sent({ message_id, edits, regenerates, ...outgoing }: Outgoing): object {
  if (!edits && !regenerates) return { type: "chat", message_id, ...outgoing };
  const type = edits ? "edit" : "regenerate";
  return { ...outgoing, type, message_id: edits ?? regenerates, idempotency_key: message_id };
}

/** A question with images on its way. Images are too large for what a browser keeps, so that it is lost
 * where the tab ends before the service has it. */
interface WithPictures {
  outgoing: Outgoing;
  pictures: Picture[];
  isSending: boolean;
}

/** The pause before a question with images is sent again, in milliseconds. */
const UPLOAD_PAUSE = 1000;
/** Messages on their way, at most: more turns of one session would not be accepted. */
const MOST_OUTGOING = 8;
/** Messages of a page of history. */
const PAGE = 50;

/** The identifier of the question of a generation: the same with the last bit flipped. */
function questionOf(generation: string): string {
  const last = (Number.parseInt(generation.slice(-1), 16) ^ 1).toString(16);
  return generation.slice(0, -1) + last;
}

export class Conversation implements LinkOwner {
  readonly messages = signal<Message[]>([]);
  readonly hasMore = signal(false);
  /** Whether the stored messages are there. */
  readonly loaded = signal(false);
  /** An error that belongs to no message. */
  readonly failure = signal<Failure | undefined>(undefined);
  /** When the token of this tab expires, where that is soon. */
  readonly expiresAt = signal("");
  /** Whether a turn is open, or a message on its way. */
  readonly busy = computed(() =>
    this.messages.value.some(
      ({ status: { value } }) => value === "waiting" || value === "streaming" || value === "sending",
    ),
  );
  readonly link: Link;
  private outgoing: Outgoing[];
  private withPictures: WithPictures[] = [];
  /** What a `history` that was asked for is about. */
  private asked: "newest" | "older" | "" = "";
  /** Whether the stored messages are to be read again, because another branch was selected. */
  private isStale = false;
  /** The messages beside which generations go, until those have ended. */
  private readonly beside = new Map<string, string>();
  /** Called once for each turn that ended, with its answer. */
  onEnd: (answer: Message) => void = () => {};

  constructor(readonly id: string) {
    this.outgoing = kept.read<Outgoing[]>(`outgoing.${id}`, []);
    this.messages.value = this.outgoing
      .filter(({ regenerates }) => !regenerates)
      .map(({ message_id, message, edits }) => {
        const question = new Message(message_id, "user", "sending", message);
        question.edits = edits;
        return question;
      });
    this.link = new Link(id, this);
  }

  /** Whether the conversation has nothing in it, as far as is known. */
  get isEmpty(): boolean {
    return this.messages.value.length === 0;
  }

  isAwaiting(): boolean {
    return this.busy.peek() || this.asked !== "";
  }

  /** Generates another answer beside one. False where as many turns are on their way as may be. */
  regenerate(answer: Message): boolean {
    if (this.outgoing.length + this.withPictures.length >= MOST_OUTGOING) return false;
    this.failure.value = undefined;
    this.sendKept({ ...request(), message_id: kept.uuid(), message: "", regenerates: answer.id });
    return true;
  }

  /** Selects the branch of another message. */
  select(message: string): void {
    this.failure.value = undefined;
    this.link.send({ type: "branch", message_id: message });
  }

  private sendKept(outgoing: Outgoing): void {
    this.keep((kept) => [...kept, outgoing]);
    this.link.send(sent(outgoing));
  }

  /** Sends a question; with `edits`, in the place of that one. False where as many are on their way as
   * may be. */
  ask(text: string, pictures: Picture[] = [], edits?: string): boolean {
    if (this.outgoing.length + this.withPictures.length >= MOST_OUTGOING) return false;
    const outgoing: Outgoing = {
      ...request(),
      message_id: kept.uuid(),
      message: text,
      ...(edits && { edits }),
    };
    const question = new Message(outgoing.message_id, "user", "sending", text);
    question.edits = edits;
    question.pictures.value = pictures;
    this.failure.value = undefined;
    this.messages.value = [...this.messages.value, question];
    if (pictures.length) {
      const withPictures = { outgoing, pictures, isSending: false };
      this.withPictures.push(withPictures);
      void this.upload(withPictures);
    } else {
      this.sendKept(outgoing);
    }
    return true;
  }

  /** Sends a question with images, again and again until the service has it or refuses it. */
  private async upload(question: WithPictures): Promise<void> {
    if (question.isSending) return;
    question.isSending = true;
    const { outgoing, pictures } = question;
    const images = pictures.map(({ data }) => data);
    while (this.withPictures.includes(question)) {
      try {
        const question = { ...outgoing, session_id: this.id, images };
        const generation = await askWithImages(outgoing.message_id, question);
        // The event of the acceptance says the same, where no connection was lost.
        batch(() => this.accepted(generation, outgoing.message, outgoing.message_id));
        return;
      } catch (error) {
        if (error instanceof ApiError && error.status !== 0) {
          return this.refused(outgoing.message_id, error.failure);
        }
      }
      await new Promise((resolve) => setTimeout(resolve, UPLOAD_PAUSE));
    }
  }

  private refused(messageId: string, failure: Failure): void {
    const question = this.messages.value.find(({ id }) => id === messageId);
    if (question?.status.value !== "sending") return;
    this.delivered(messageId);
    question.note({ failure });
    question.status.value = "refused";
  }

  /** Takes a question that was refused off the page. */
  discard(question: Message): void {
    this.messages.value = this.messages.value.filter((message) => message !== question);
  }

  /** Stops the running answer, or else the one that waits. */
  stop(): void {
    this.link.send({ type: "cancel" });
  }

  loadOlder(): void {
    const first = this.messages.value.find(({ status }) => status.value !== "sending");
    if (this.asked || !first) return;
    if (this.link.send({ type: "get_history", limit: PAGE, before: first.id })) this.asked = "older";
  }

  close(): void {
    this.link.close();
  }

  handle(event: ServerEvent): void {
    batch(() => this.apply(event));
  }

  private apply(event: ServerEvent): void {
    switch (event.type) {
      case "connection":
        this.asked = "";
        if (!event.resumed && this.link.send({ type: "get_history", limit: PAGE })) {
          this.asked = "newest";
        }
        for (const outgoing of this.outgoing) this.link.send(sent(outgoing));
        return;
      case "history":
        return this.takeHistory(event);
      case "history_cleared":
        this.messages.value = this.messages.value.filter(({ status }) => status.value === "sending");
        this.hasMore.value = false;
        return;
      case "message_received": {
        const { generation_id: generation = "", regenerated, edited } = event;
        const beside = regenerated ?? edited;
        if (beside) this.beside.set(generation, beside);
        return this.accepted(generation, event.message, event.message_id);
      }
      case "branch_selected":
        return this.readAgain();
      case "auth_expiring":
        this.expiresAt.value = event.expires_at;
        return;
      case "authenticated":
        this.expiresAt.value = "";
        return;
      case "error":
        return this.failed(event);
      default:
        if (event.generation_id) this.progress(event, event.generation_id);
    }
  }

  /** Applies an event of a generation. */
  private progress(event: ServerEvent, generation: string): void {
    const answer = this.answer(generation);
    // A turn that had ended before it was sent again comes as a whole once more.
    if (!answer.isOpen) return;
    switch (event.type) {
      case "queued":
        answer.note({ position: event.position, eta: event.eta_seconds });
        return;
      case "stream_start":
        // The second one of a turn begins its text anew, as after a failover.
        answer.cut(0);
        answer.status.value = "streaming";
        answer.note({ model: event.model });
        this.takePlace(generation);
        return;
      case "stream_thinking":
      case "stream_chunk": {
        const kind = event.type === "stream_chunk" ? "text" : "reasoning";
        if (event.offset === undefined) return;
        answer.status.value = "streaming";
        if (answer.notes.value.position) answer.note({ position: 0 });
        // There is never a hole; if there were one, the page would be read anew.
        if (!answer.append(event.content, event.offset, kind)) this.link.restart();
        return;
      }
      case "stream_restart":
        answer.cut(event.from);
        return;
      case "stream_end":
      case "response": {
        const text = event.type === "response" ? event.content : event.full_response;
        const { finish_reason: finish, usage, context, continued } = event;
        const model = event.type === "response" ? { model: event.model } : {};
        this.end(answer, "complete", text, {
          ...model,
          finish,
          ...(usage && { usage }),
          ...(context && { context }),
          ...(continued && { continued }),
        });
        return;
      }
      case "cancelled":
        this.end(answer, "cancelled", event.full_response, {});
        return;
      default:
    }
  }

  private end(answer: Message, status: Status, text: string, notes: Notes): void {
    answer.replace(text);
    answer.note(notes);
    answer.status.value = status;
    this.ended(answer);
  }

  private ended(answer: Message): void {
    // What is stored now tells the alternatives.
    if (this.beside.delete(answer.id)) this.readAgain();
    this.onEnd(answer);
  }

  /** A turn beside another message begins: what followed there is a branch of its own from now on. */
  private takePlace(generation: string): void {
    const beside = this.beside.get(generation);
    const at = this.messages.value.findIndex(({ id }) => id === beside);
    if (at < 0) return;
    const isOpen = ({ isOpen, status: { value } }: Message) =>
      isOpen || value === "sending" || value === "refused";
    const questions = new Set(this.messages.value.filter(isOpen).map(({ id }) => questionOf(id)));
    this.messages.value = this.messages.value.filter(
      (message, place) => place < at || isOpen(message) || questions.has(message.id),
    );
    this.readAgain();
  }

  /** Reads the stored messages again. */
  private readAgain(): void {
    this.isStale = this.asked !== "" || !this.link.send({ type: "get_history", limit: PAGE });
    if (!this.isStale) this.asked = "newest";
  }

  private failed(event: Extract<ServerEvent, { type: "error" }>): void {
    const { code, message, retryable, retry_after: seconds } = event;
    const failure: Failure = { code, message, retryable };
    if (seconds) failure.retryAt = Date.now() + seconds * 1000;
    if (event.generation_id) {
      const answer = this.answer(event.generation_id);
      if (!answer.isOpen) return;
      answer.note({ failure });
      answer.status.value = "failed";
      this.ended(answer);
      return;
    }
    if (event.message_id) this.delivered(event.message_id);
    const question = this.messages.value.find(({ id }) => id === event.message_id);
    if (question?.status.value === "sending") {
      this.refused(question.id, failure);
    } else if (this.asked) {
      this.asked = "";
      this.loaded.value = true;
      this.failure.value = failure;
    } else {
      this.failure.value = failure;
    }
  }

  /** Returns the answer of a generation; one that is new stands after all that is there. */
  private answer(generation: string): Message {
    const known = this.messages.value.find(({ id }) => id === generation);
    if (known) return known;
    const answer = new Message(generation, "assistant", "waiting");
    const at = this.messages.value.findIndex(({ id }) => id === questionOf(generation));
    const rest = this.messages.value.findIndex(({ status }) => status.value === "sending");
    const place = at >= 0 ? at + 1 : rest >= 0 ? rest : this.messages.value.length;
    this.messages.value = this.messages.value.toSpliced(place, 0, answer);
    return answer;
  }

  /** A turn was accepted: this tab's question gets the identifier that it is stored under. */
  private accepted(generation: string, text: string, messageId?: string): void {
    const id = questionOf(generation);
    // The event of a question that went over REST does not name this tab's identifier.
    const isSent = ({ outgoing }: WithPictures) => outgoing.message === text;
    messageId ??= this.withPictures.find(isSent)?.outgoing.message_id;
    const own = this.messages.value.find((message) => message.id === messageId);
    const stored = this.messages.value.find((message) => message.id === id);
    if (messageId) this.delivered(messageId);
    if (own && stored) {
      stored.pictures.value = own.pictures.value;
      this.discard(own);
    } else if (own) {
      own.id = id;
      own.edits = undefined;
      own.status.value = "complete";
      // Turns run in the order of their acceptance, and this tab may have sent before others did.
      const others = this.messages.value.filter((message) => message !== own);
      const rest = others.findIndex(({ status }) => status.value === "sending");
      const place = rest < 0 ? others.length : rest;
      this.messages.value = others.toSpliced(place, 0, own);
    } else if (!stored && text) {
      const question = new Message(id, "user", "complete", text);
      const rest = this.messages.value.findIndex(({ status }) => status.value === "sending");
      const place = rest < 0 ? this.messages.value.length : rest;
      this.messages.value = this.messages.value.toSpliced(place, 0, question);
    }
    this.answer(generation);
  }

  private delivered(messageId: string): void {
    this.withPictures = this.withPictures.filter(({ outgoing }) => outgoing.message_id !== messageId);
    this.keep((kept) => kept.filter(({ message_id }) => message_id !== messageId));
  }

  /** Changes what is on its way, here and in the browser, where another tab may have added to it. */
  private keep(change: (outgoing: Outgoing[]) => Outgoing[]): void {
    this.outgoing = change(this.outgoing);
    const key = `outgoing.${this.id}`;
    const all = change(kept.read<Outgoing[]>(key, [])).slice(-MOST_OUTGOING);
    kept.write(key, all.length ? all : undefined);
  }

  /** Takes a page of stored messages: one that was asked for, or a snapshot in place of all. */
  private takeHistory(event: Extract<ServerEvent, { type: "history" }>): void {
    const { asked } = this;
    this.asked = "";
    if (this.isStale) this.readAgain();
    const page = event.messages.map(fromStored).filter((message) => message !== undefined);
    const inPage = new Set(page.map(({ id }) => id));
    if (asked === "older") {
      this.hasMore.value = event.has_more;
      this.messages.value = [
        ...page,
        ...this.messages.value.filter(({ id }) => !inPage.has(id)),
      ];
      return;
    }
    const open = new Map(this.messages.value.map((message) => [message.id, message]));
    // An answer that this page shows already goes on in its place, so that nothing jumps.
    const merged = page.map((message) => {
      const known = open.get(message.id);
      if (!known || known.role !== message.role) return message;
      if (message.status.value !== "complete" || known.text.value !== message.text.value) {
        known.replace(message.text.value, message.reasoning.value);
      }
      known.notes.value = message.notes.value;
      known.siblings.value = message.siblings.value;
      known.status.value = message.status.value;
      return known;
    });
    // A snapshot has every answer that has begun. A turn that waits is in neither, nor its question.
    const isSnapshot = asked === "";
    const waits = ({ status: { value } }: Message) =>
      value === "waiting" || (value === "streaming" && !isSnapshot);
    const questions = new Set(this.messages.value.filter(waits).map(({ id }) => questionOf(id)));
    const rest = this.messages.value.filter(
      (message) =>
        !inPage.has(message.id) &&
        (waits(message) ||
          questions.has(message.id) ||
          message.status.value === "sending" ||
          message.status.value === "refused"),
    );
    this.messages.value = [...merged, ...rest];
    if (event.answer) {
      const { generation_id: generation, content, thinking = "" } = event.answer;
      const answer = this.answer(generation);
      answer.status.value = "streaming";
      answer.replace(content, thinking);
    }
    this.hasMore.value = event.has_more;
    this.loaded.value = true;
  }
}

function fromStored(stored: StoredMessage): Message | undefined {
  if (stored.role !== "user" && stored.role !== "assistant") return undefined;
  const id = stored.role === "assistant" ? (stored.generation_id ?? stored.id) : stored.id;
  const message = new Message(id, stored.role, stored.status ?? "complete", stored.content);
  if (stored.thinking) message.replace(stored.content, stored.thinking);
  message.pictures.value = stored.images?.length ?? 0;
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
