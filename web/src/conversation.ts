/** One conversation as this page knows it: the stored messages, the answers that grow, and the
 * messages that wait to be accepted. Every change comes from an event of the service, except a
 * message that was just sent. */

import { batch, computed, signal } from "@preact/signals";
import * as api from "./api";
import * as kept from "./kept";
import { Link } from "./link";
import type { LinkOwner } from "./link";
import { fromStored, Message, questionOf } from "./message";
import type { Notes, Status } from "./message";
import { isUnknown, Outbox } from "./outbox";
import type { Outgoing, OutboxOwner } from "./outbox";
import type { Picture } from "./pictures";
import { request } from "./settings";
import type { Failure, ServerEvent } from "./wire";

/** Messages of the first page of a history, which a slow connection has to carry before anything is
 * seen, and of each further one. */
const FIRST_PAGE = 20;
const PAGE = 50;
/** Messages that are read to see what another client asked: the question, and the one before it. */
const NEWEST = 2;
/** The pauses before something that failed is tried again, in milliseconds: doubled up to a bound. */
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30_000;

type Retried = "read" | "select" | "stop";

/** A turn that was cancelled before it began. Its question is not stored, unless it began meanwhile. */
interface Withdrawn {
  generation: string;
  question: Message | undefined;
  /** The question in whose place it was asked. */
  edits?: string | undefined;
  /** Whether this tab stopped it. */
  isOwn: boolean;
}

/** A `get_history` whose reply is not here yet. It is sent again on each connection. */
interface Reading {
  /** The identifier that the reply repeats. */
  id: string;
  limit: number;
  /** The first message that is shown, where those before it are asked for. */
  before?: string | undefined;
  /** Answers that ended since it was sent: the reply may have been read before. */
  ended: Set<string>;
  withdrawn: Withdrawn[];
}

export class Conversation implements LinkOwner, OutboxOwner {
  readonly messages = signal<Message[]>([]);
  readonly hasMore = signal(false);
  /** Whether the stored messages are there. */
  readonly loaded = signal(false);
  /** An error that belongs to no message. */
  readonly failure = signal<Failure | undefined>(undefined);
  /** When the token of this tab expires, where that is soon. */
  readonly expiresAt = signal("");
  readonly outbox: Outbox;
  /** The generation that is to be stopped, until it has ended. */
  readonly stopping = signal("");
  /** The message whose branch is to be selected, until it is, and the identifier of the request. */
  readonly selecting = signal<{ id: string; message: string } | undefined>(undefined);
  /** Whether a turn is open, or a message on its way. */
  readonly busy = computed(
    () =>
      this.outbox.items.value.length > 0 ||
      this.selecting.value !== undefined ||
      this.messages.value.some(({ isOpen }) => isOpen),
  );
  readonly link: Link;
  private reading: Reading | undefined;
  /** Whether the stored messages are to be read again, because they changed since they were asked for. */
  private isStale = false;
  /** Whether the snapshot is missing that follows a connection whose cursor could not be resumed. */
  private awaitsSnapshot = false;
  private withdrawn: Withdrawn[] = [];
  private pause = FIRST_PAUSE;
  /** What is tried again after a pause, by what it is. */
  private readonly timers: Record<Retried, number> = { read: 0, select: 0, stop: 0 };
  /** The failure that is shown because the stored messages cannot be read. */
  private readFailure: Failure | undefined;
  /** The messages beside which generations go, until those have ended. */
  private readonly beside = new Map<string, string>();
  /** Generations that another client asked for, until they begin. */
  private readonly foreign = new Set<string>();
  /** Called once for each turn that ended, with its answer. */
  onEnd: (answer: Message) => void = () => {};

  constructor(
    readonly id: string,
    private readonly user = () => "",
  ) {
    this.outbox = new Outbox(id, this);
    const written = this.outbox.stored.filter(({ regenerates }) => !regenerates);
    this.messages.value = written.map((item) => this.written(item));
    this.link = new Link(id, this);
  }

  /** The question of a message that the browser kept. */
  private written(item: Outgoing): Message {
    const { message_id: id, message, edits, failure, pictures } = item;
    const question = new Message(id, "user", failure ? "refused" : "sending", message);
    question.edits = edits;
    if (failure) question.note({ failure });
    if (pictures) {
      question.pictures.value = pictures;
      void this.outbox.picturesOf(item).then((all) => {
        if (all.length && question.pictures.peek() === pictures) question.pictures.value = all;
      });
    }
    return question;
  }

  /** Whether the conversation has nothing in it, as far as is known. */
  get isEmpty(): boolean {
    return this.messages.value.length === 0;
  }

  isAwaiting(): boolean {
    return this.busy.peek() || this.isReading() || this.stopping.peek() !== "";
  }

  isReading(): boolean {
    return this.reading !== undefined || this.awaitsSnapshot;
  }

  send(message: object): boolean {
    return this.link.send(message);
  }

  /** Generates another answer beside one. False where as many turns are on their way as may be. */
  regenerate(answer: Message): boolean {
    if (this.outbox.isFull) return this.isFull();
    this.failure.value = undefined;
    this.outbox.add(this.outgoing({ message: "", regenerates: answer.id }));
    return true;
  }

  private isFull(): false {
    const message = "As many messages are on their way as may be; wait until one was taken.";
    this.failure.value = { code: "outgoing_full", message, retryable: false };
    return false;
  }

  private outgoing(fields: Partial<Outgoing> & { message: string }): Outgoing {
    const user = this.user();
    return { ...request(), message_id: kept.uuid(), ...(user && { user }), ...fields };
  }

  /** Selects the branch of another message. */
  select(message: string): void {
    this.failure.value = undefined;
    this.selecting.value = { id: kept.uuid(), message };
    this.sendSelection();
  }

  private sendSelection(): void {
    const { value } = this.selecting;
    if (!value) return;
    this.link.send({ type: "branch", message_id: value.message, idempotency_key: value.id });
  }

  /** Sends a question; with `edits`, in the place of that one. False where as many are on their way as
   * may be. */
  ask(text: string, pictures: Picture[] = [], edits?: string): boolean {
    if (this.outbox.isFull) return this.isFull();
    const outgoing = this.outgoing({ message: text, ...(edits && { edits }) });
    const question = new Message(outgoing.message_id, "user", "sending", text);
    question.edits = edits;
    // The images of a question that is edited stay.
    const edited = edits && this.messages.value.find(({ id }) => id === edits);
    question.pictures.value = edited ? edited.pictures.peek() : pictures;
    this.failure.value = undefined;
    this.messages.value = [...this.messages.value, question];
    this.outbox.add(outgoing, edits ? [] : pictures);
    return true;
  }

  /** Asks a question again that was refused. Where it is not known what became of it, it is the same
   * request once more, so that it is not asked twice; else it is asked as the settings are now. */
  askAgain(question: Message): boolean {
    if (this.outbox.isFull) return this.isFull();
    const { failure } = question.notes.peek();
    const item = this.outbox.refusedItem(question.id);
    const pictures = question.pictures.peek();
    if (item && failure && isUnknown(failure)) {
      question.status.value = "sending";
      this.outbox.add(item, Array.isArray(pictures) ? pictures : []);
      return true;
    }
    const text = question.text.peek();
    this.discard(question);
    return this.ask(text, Array.isArray(pictures) ? pictures : [], question.edits);
  }

  uploaded({ message, message_id }: Outgoing, generation: string): void {
    // The event of the acceptance says the same, where no connection was lost.
    batch(() => this.accepted(generation, message, message_id));
  }

  refused({ message_id, regenerates }: Outgoing, failure: Failure): void {
    const question = this.messages.value.find(({ id }) => id === message_id);
    if (regenerates || !question) {
      this.failure.value = failure;
      return;
    }
    question.note({ failure });
    question.status.value = "refused";
    this.onEnd(question);
  }

  /** Takes a question that was refused off the page. */
  discard(question: Message): void {
    this.outbox.discard(question.id);
    this.messages.value = this.messages.value.filter((message) => message !== question);
  }

  /** Stops an answer; without one the running answer, or else the one that waits longest. */
  stop(answer?: Message): void {
    const isStreaming = ({ status }: Message) => status.value === "streaming";
    const { value: messages } = this.messages;
    const open = answer ?? messages.find(isStreaming) ?? messages.find((it) => it.isOpen);
    if (!open) return;
    this.stopping.value = open.id;
    this.sendStop();
  }

  private sendStop(): void {
    if (!this.stopping.value) return;
    this.link.send({ type: "cancel", generation_id: this.stopping.value });
  }

  loadOlder(): void {
    const first = this.messages.value.find(({ isStored }) => isStored);
    if (this.reading || !first) return;
    this.read(PAGE, first.id);
  }

  /** Closes the connection; what is on its way stays kept, and is sent when the session is opened. */
  close(): void {
    for (const timer of Object.values(this.timers)) clearTimeout(timer);
    this.outbox.close();
    this.link.close();
  }

  handle(event: ServerEvent): void {
    batch(() => this.apply(event));
  }

  private apply(event: ServerEvent): void {
    switch (event.type) {
      case "connection":
        return this.connected(event);
      case "history":
        return this.takeHistory(event);
      case "history_cleared":
        this.messages.value = this.messages.value.filter(
          ({ status: { value } }) => value === "sending" || value === "refused",
        );
        this.hasMore.value = false;
        return;
      case "message_received": {
        const { generation_id: generation = "", regenerated, edited } = event;
        const beside = regenerated ?? edited;
        if (beside) this.beside.set(generation, beside);
        return this.accepted(generation, event.message, event.message_id);
      }
      case "branch_selected":
        this.selecting.value = undefined;
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

  /** A connection is open: whatever was asked for and did not come is asked for again. */
  private connected({ resumed, recovered }: Extract<ServerEvent, { type: "connection" }>): void {
    if (resumed && recovered && this.awaitsSnapshot) {
      // The snapshot was lost with the connection before.
      this.awaitsSnapshot = false;
      return this.link.restart();
    }
    this.awaitsSnapshot = resumed && !recovered;
    const isNewest = this.reading !== undefined && this.reading.before === undefined;
    if (!resumed && !isNewest) this.read(FIRST_PAGE);
    else if (this.reading) this.sendReading();
    else if (!this.loaded.value && !this.awaitsSnapshot) this.read(FIRST_PAGE);
    this.outbox.connected();
    this.sendSelection();
    this.sendStop();
  }

  /** Reads stored messages: those before a message, or the newest. */
  private read(limit: number, before?: string): void {
    const withdrawn = [...(this.reading?.withdrawn ?? []), ...this.withdrawn];
    this.withdrawn = [];
    this.reading = { id: kept.uuid(), limit, before, ended: new Set(), withdrawn };
    this.sendReading();
  }

  private sendReading(): void {
    clearTimeout(this.timers.read);
    if (!this.reading) return;
    const { id: message_id, limit, before } = this.reading;
    this.link.send({ type: "get_history", limit, message_id, ...(before && { before }) });
  }

  /** Reads the newest stored messages again, because they changed. */
  private readAgain(limit = PAGE): void {
    if (this.reading) this.isStale = true;
    else this.read(limit);
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
        answer.note({ model: event.model, position: 0 });
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
        return this.cancelled(answer, event.full_response);
      default:
    }
  }

  private cancelled(answer: Message, text: string): void {
    const { id } = answer;
    const withdrawn = {
      generation: id,
      question: this.messages.value.find((message) => message.id === questionOf(id)),
      edits: this.beside.get(id),
      isOwn: this.stopping.value === id,
    };
    const hadBegun = answer.status.value === "streaming";
    this.end(answer, "cancelled", text, {});
    if (hadBegun) return;
    this.withdrawn.push(withdrawn);
    this.readAgain();
  }

  private end(answer: Message, status: Status, text: string, notes: Notes): void {
    answer.replace(text);
    answer.note(notes);
    answer.status.value = status;
    this.ended(answer);
  }

  private ended(answer: Message): void {
    this.reading?.ended.add(answer.id);
    this.foreign.delete(answer.id);
    if (this.stopping.value === answer.id) this.stopping.value = "";
    // What is stored now tells the alternatives.
    if (this.beside.delete(answer.id)) this.readAgain();
    this.onEnd(answer);
  }

  /** A turn beside another message begins: what followed there is a branch of its own from now on. */
  private takePlace(generation: string): void {
    // The event of a question does not tell whether it has images.
    if (this.foreign.delete(generation)) this.readAgain(NEWEST);
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

  private failed(event: Extract<ServerEvent, { type: "error" }>): void {
    const { code, message, retryable, retry_after: seconds, message_id: id } = event;
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
    if (id && this.outbox.failed(id, failure)) return;
    if (id && id === this.reading?.id) return this.readFailed(failure);
    if (id && id === this.selecting.value?.id) {
      if (isUnknown(failure)) return this.later("select", failure, () => this.sendSelection());
      this.selecting.value = undefined;
    } else if (this.stopping.value) {
      // Its end is on the way, or was seen.
      if (code === "already_ended" || code === "generation_not_found") this.stopping.value = "";
      else this.later("stop", failure, () => this.sendStop());
      return;
    }
    if (code !== "already_ended") this.failure.value = failure;
  }

  private readFailed(failure: Failure): void {
    this.failure.value = this.readFailure = failure;
    const isNewest = this.reading?.before === undefined;
    if (isNewest && (failure.retryable || isUnknown(failure))) {
      this.later("read", failure, () => this.sendReading());
      return;
    }
    this.reading = undefined;
    this.loaded.value = true;
  }

  /** Does something after the pause that a failure names, and longer each time. */
  private later(what: Retried, { retryAt = 0 }: Failure, action: () => void): void {
    clearTimeout(this.timers[what]);
    this.timers[what] = window.setTimeout(action, Math.max(this.pause, retryAt - Date.now()));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  /** Returns the answer of a generation; one that is new stands after all that is there. */
  private answer(generation: string): Message {
    const known = this.messages.value.find(({ id }) => id === generation);
    if (known) return known;
    const answer = new Message(generation, "assistant", "waiting");
    const at = this.messages.value.findIndex(({ id }) => id === questionOf(generation));
    this.messages.value = this.messages.value.toSpliced(at >= 0 ? at + 1 : this.next(), 0, answer);
    return answer;
  }

  /** The place of what was accepted last: before all that is on its way. */
  private next(): number {
    const sending = this.messages.value.findIndex(({ status }) => status.value === "sending");
    return sending < 0 ? this.messages.value.length : sending;
  }

  /** A turn was accepted: this tab's question gets the identifier that it is stored under. */
  private accepted(generation: string, text: string, messageId?: string): void {
    const id = questionOf(generation);
    const own = this.messages.value.find((message) => message.id === messageId);
    const stored = this.messages.value.find((message) => message.id === id);
    if (own) this.messages.value = this.messages.value.filter((message) => message !== own);
    if (own && stored) {
      stored.pictures.value = own.pictures.value;
    } else if (own) {
      own.id = id;
      own.edits = undefined;
      own.status.value = "complete";
      // Turns run in the order of their acceptance, and this tab may have sent before others did.
      this.messages.value = this.messages.value.toSpliced(this.next(), 0, own);
    } else if (!stored && text) {
      const question = new Message(id, "user", "complete", text);
      this.messages.value = this.messages.value.toSpliced(this.next(), 0, question);
      this.foreign.add(generation);
    }
    this.answer(generation);
    if (messageId) this.outbox.delivered(messageId);
  }

  private takeHistory(event: Extract<ServerEvent, { type: "history" }>): void {
    const { reading } = this;
    if (event.message_id === undefined) return this.takeSnapshot(event);
    // A reply to a request that another one replaced.
    if (event.message_id !== reading?.id) return;
    this.reading = undefined;
    this.pause = FIRST_PAUSE;
    if (this.failure.value === this.readFailure) this.failure.value = undefined;
    this.readFailure = undefined;
    const first = event.messages[0]?.id;
    if (reading.limit === NEWEST && event.has_more && !this.messages.value.some(({ id }) => id === first)) {
      // More happened than so few messages tell.
      this.isStale = true;
    } else if (reading.before === undefined) {
      const isOpen = ({ isOpen }: Message) => isOpen;
      this.merge(event, (message) => isOpen(message) || reading.ended.has(message.id));
      for (const withdrawn of reading.withdrawn) this.giveBack(withdrawn, event);
    } else {
      this.takeOlder(event, reading.before);
    }
    if (this.isStale) {
      this.isStale = false;
      this.read(PAGE);
    }
  }

  /** Takes a page of what is before the first message that is shown. */
  private takeOlder(event: Extract<ServerEvent, { type: "history" }>, before: string): void {
    const first = this.messages.value.find(({ isStored }) => isStored);
    // Another branch was selected meanwhile.
    if (first?.id !== before) return;
    const page = event.messages.map(fromStored).filter((message) => message !== undefined);
    const inPage = new Set(page.map(({ id }) => id));
    this.hasMore.value = event.has_more;
    this.messages.value = [...page, ...this.messages.value.filter(({ id }) => !inPage.has(id))];
  }

  /** Takes the messages that stand in place of all that is shown. */
  private takeSnapshot(event: Extract<ServerEvent, { type: "history" }>): void {
    this.awaitsSnapshot = false;
    this.outbox.passedOver();
    // A snapshot has every answer that has begun. A turn that waits is in neither, nor its question.
    this.merge(event, ({ status }) => status.value === "waiting");
    if (event.answer) {
      const { generation_id: generation, content, thinking = "" } = event.answer;
      const answer = this.answer(generation);
      answer.status.value = "streaming";
      answer.replace(content, thinking);
    }
    // What was asked for before may be older than this.
    if (this.reading && this.reading.before === undefined) this.read(this.reading.limit);
    for (const { id, status } of this.messages.value) {
      if (status.value === "waiting") void this.settle(id);
    }
  }

  /** Asks what became of a turn that waited before events were missed: its end may be among them. */
  private async settle(generation: string): Promise<void> {
    const isGone = await api.hasVanished(this.id, generation);
    const answer = this.messages.value.find(({ id }) => id === generation);
    if (isGone && answer?.status.value === "waiting") batch(() => this.cancelled(answer, ""));
  }

  /** Shows these messages in place of those that are shown; `stays` says which answers stay though
   * they, and their questions, are not among them. */
  private merge(
    event: Extract<ServerEvent, { type: "history" }>,
    stays: (answer: Message) => boolean,
  ): void {
    const page = event.messages.map(fromStored).filter((message) => message !== undefined);
    const inPage = new Set(page.map(({ id }) => id));
    const shown = this.messages.value;
    const known = new Map(shown.map((message) => [message.id, message]));
    const ended: Message[] = [];
    // An answer that this page shows already goes on in its place, so that nothing jumps.
    const merged = page.map((message) => {
      const before = known.get(message.id);
      if (!before || before.role !== message.role) return message;
      if (before.isOpen) ended.push(before);
      before.update(message);
      return before;
    });
    // A page that begins with a message that is shown follows what is shown before that.
    const at = shown.findIndex(({ id }) => id === page[0]?.id);
    const earlier = shown.slice(0, Math.max(at, 0)).filter(({ id, isStored }) => isStored && !inPage.has(id));
    const answers = shown.filter((message) => message.role === "assistant" && stays(message));
    const open = new Set(answers.flatMap(({ id }) => [id, questionOf(id)]));
    const rest = shown.filter(
      (message) =>
        !inPage.has(message.id) &&
        !earlier.includes(message) &&
        (open.has(message.id) ||
          message.status.value === "sending" ||
          message.status.value === "refused"),
    );
    this.messages.value = [...earlier, ...merged, ...rest];
    if (!earlier.length) this.hasMore.value = event.has_more;
    this.loaded.value = true;
    for (const answer of ended) this.ended(answer);
  }

  /** The question of a turn that this tab stopped before it began is in no history: it is kept here. */
  private giveBack(
    { question, edits, isOwn }: Withdrawn,
    event: Extract<ServerEvent, { type: "history" }>,
  ): void {
    if (!question || !isOwn || event.messages.some(({ id }) => id === question.id)) return;
    const failure: Failure = {
      code: "stopped",
      message: "You stopped this question before its answer began, so the service has not kept it.",
      retryable: false,
    };
    const pictures = question.pictures.peek();
    const outgoing = this.outgoing({ message: question.text.peek(), ...(edits && { edits }) });
    this.outbox.addRefused(outgoing, Array.isArray(pictures) && !edits ? pictures : [], failure);
    const copy = this.written({ ...outgoing, failure });
    copy.pictures.value = pictures;
    this.messages.value = [...this.messages.value, copy];
  }
}
