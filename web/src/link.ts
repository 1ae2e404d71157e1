/** The connection of one session: a WebSocket that is opened again, with its cursor, until it is
 * closed for good. docs/PROTOCOL.md says which close code means what. */

import { signal } from "@preact/signals";
import * as api from "./api";
import type { Failure, ServerEvent } from "./wire";

/** How long the first attempt may take to its `connection` event; each further one twice as long. */
const FIRST_ATTEMPT = 1000;
const LONGEST_ATTEMPT = 5000;
/** The pauses between attempts: doubled up to a bound, each cut by a random part. */
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 8000;
/** While an answer is awaited, silence this long is answered with a ping, and a ping that is not
 * answered for as long again ends the connection: together less than three seconds. */
const SILENCE = 1200;
/** The same silence while nothing is awaited and the page is seen: together at most three seconds. */
const SEEN_SILENCE = 1600;
/** The same while the page is hidden. */
const HIDDEN_SILENCE = 20_000;
/** The limit while stored messages are on their way: they are large, and a frame is heard only when it is
 * whole. */
const READING_SILENCE = 10_000;
/** How often each limit is doubled, at most. One that was too short for a slow connection is doubled
 * until a ping or a piece of an answer comes through. */
const MOST_DOUBLINGS = 4;
const PULSE = 100;

export type LinkState =
  | { kind: "connecting" }
  | { kind: "open" }
  /** The connection was lost; the next attempt is at `until`. */
  | { kind: "waiting"; until: number; failure?: Failure }
  /** The caller has to sign in first. */
  | { kind: "signed-out"; failure: Failure }
  /** Trying again would change nothing. */
  | { kind: "stopped"; failure: Failure };

export interface LinkOwner {
  /** Handles an event; `connection` comes first on each connection. */
  handle(event: ServerEvent): void;
  /** Whether anything is awaited of the service. */
  isAwaiting(): boolean;
  /** Whether stored messages are awaited. */
  isReading(): boolean;
}

export class Link {
  readonly state = signal<LinkState>({ kind: "connecting" });
  private socket: WebSocket | undefined;
  private cursor = "";
  private attempt = 0;
  private heard = 0;
  private pinged = 0;
  /** Connections in a row that ended by their silence. */
  private silences = 0;
  private attemptTimer = 0;
  private retryTimer = 0;
  private readonly pulse: number;
  private readonly wake = () => this.check();
  private readonly online = () => this.connectNow();
  private readonly visible = () => {
    if (document.visibilityState === "visible") this.check();
  };

  constructor(
    private readonly session: string,
    private readonly owner: LinkOwner,
  ) {
    this.pulse = window.setInterval(() => this.beat(), PULSE);
    addEventListener("online", this.online);
    addEventListener("pageshow", this.wake);
    addEventListener("focus", this.wake);
    document.addEventListener("visibilitychange", this.visible);
    this.connect();
  }

  /** Sends a message; false where there is no open connection. */
  send(message: object): boolean {
    if (this.state.value.kind !== "open" || !this.socket) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Closes the connection for good. */
  close(): void {
    clearInterval(this.pulse);
    removeEventListener("online", this.online);
    removeEventListener("pageshow", this.wake);
    removeEventListener("focus", this.wake);
    document.removeEventListener("visibilitychange", this.visible);
    this.drop();
  }

  /** Connects at once, where there is no connection. */
  connectNow(): void {
    const { kind } = this.state.value;
    if (kind === "open") this.ping();
    else if (kind !== "connecting") {
      this.attempt = 0;
      this.connect();
    }
  }

  /** Forgets the connection and its cursor, and begins anew. */
  restart(): void {
    this.cursor = "";
    this.attempt = 0;
    this.connect();
  }

  /** Looks at once whether the connection lives, as after the machine slept. */
  private check(): void {
    const { kind } = this.state.value;
    if (kind === "open") this.ping();
    else if (kind === "waiting") this.connectNow();
  }

  private drop(): void {
    clearTimeout(this.attemptTimer);
    clearTimeout(this.retryTimer);
    const socket = this.socket;
    this.socket = undefined;
    this.pinged = 0;
    socket?.close();
  }

  private connect(): void {
    this.drop();
    this.attempt += 1;
    if (this.state.value.kind !== "connecting") this.state.value = { kind: "connecting" };
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("session_id", this.session);
    if (this.cursor) url.searchParams.set("cursor", this.cursor);
    const token = api.token.value;
    const protocols = token ? ["jarvis.v1", `bearer.${token}`] : ["jarvis.v1"];
    let socket: WebSocket;
    try {
      socket = new WebSocket(url, protocols);
    } catch {
      // A token with characters that a header cannot carry.
      const message = "The token has characters that no token has; sign in again.";
      const failure = { code: "token_invalid", message, retryable: false };
      this.state.value = { kind: "signed-out", failure };
      return;
    }
    this.socket = socket;
    const limit = Math.min(FIRST_ATTEMPT * 2 ** (this.attempt - 1), LONGEST_ATTEMPT);
    this.attemptTimer = window.setTimeout(() => this.lost(), limit);
    socket.onmessage = ({ data }) => {
      if (this.socket === socket) this.receive(String(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (this.socket === socket) this.closed(code, reason);
    };
  }

  private receive(text: string): void {
    this.heard = Date.now();
    // A reply that comes later than the limit leaves it doubled: it is what the connection takes.
    const isInTime = !this.pinged || this.heard - this.pinged <= SILENCE;
    this.pinged = 0;
    let event: ServerEvent;
    try {
      event = JSON.parse(text) as ServerEvent;
    } catch {
      return;
    }
    if (event.cursor) this.cursor = event.cursor;
    if (isInTime && (event.type === "pong" || event.type === "stream_chunk")) this.silences = 0;
    if (event.type === "connection") {
      clearTimeout(this.attemptTimer);
      this.attempt = 0;
      this.state.value = { kind: "open" };
    }
    this.owner.handle(event);
  }

  private ping(): void {
    if (this.pinged) return;
    this.pinged = Date.now();
    this.socket?.send('{"type":"ping"}');
  }

  /** Notices a connection that died without a word. */
  private beat(): void {
    if (this.state.value.kind !== "open") return;
    const now = Date.now();
    if (this.pinged) {
      const limit = (this.owner.isReading() ? READING_SILENCE : SILENCE) * 2 ** this.silences;
      if (now - this.pinged <= limit) return;
      this.silences = Math.min(this.silences + 1, MOST_DOUBLINGS);
      this.lost();
    } else if (now - this.heard > this.longestSilence()) {
      this.ping();
    }
  }

  private longestSilence(): number {
    if (this.owner.isAwaiting()) return SILENCE;
    return document.visibilityState === "visible" ? SEEN_SILENCE : HIDDEN_SILENCE;
  }

  private closed(code: number, reason: string): void {
    const wasOpen = this.state.value.kind === "open";
    const stop = (message: string, code: string) => {
      this.drop();
      this.state.value = { kind: "stopped", failure: { code, message, retryable: false } };
    };
    if (code === 1012) return this.lost(retryAfter(reason) * 1000);
    if (code === 1013) return this.lost(2000 + Math.random() * 3000);
    if (code === 1011) return this.lost(1000 + Math.random() * 1000);
    if (code === 1009) return stop("A message was too large; send a shorter one.", "too_large");
    if (code === 1002 || code === 1007) {
      return stop("The service did not understand this page; reload it.", "protocol");
    }
    if (code === 1008) {
      if (!/token|sign|revoked|key/i.test(reason)) {
        return stop("The service refused further messages; reload the page.", "policy");
      }
      this.drop();
      const message = /sign in/.test(reason) ? reason : `${reason}; sign in to continue`;
      const failure = { code: "sign_in_required", message, retryable: false };
      this.state.value = { kind: "signed-out", failure };
      return;
    }
    if (wasOpen) this.lost();
    else void this.refused();
  }

  /** A browser does not tell why a handshake was refused, so a request to the same service asks. */
  private async refused(): Promise<void> {
    this.drop();
    const attempt = this.attempt;
    this.lost();
    try {
      await api.usage();
    } catch (error) {
      if (!(error instanceof api.ApiError) || this.attempt !== attempt) return;
      const { failure } = error;
      if (this.state.value.kind !== "waiting") return;
      if (error.status === 401) {
        this.drop();
        this.state.value = { kind: "signed-out", failure };
      } else if (failure.retryAt) {
        this.lost(failure.retryAt - Date.now(), failure);
      } else if (failure.code !== "unreachable") {
        this.state.value = { ...this.state.value, failure };
      }
    }
  }

  /** Connects again after a pause: at once the first time, unless the service named a pause. */
  private lost(pause?: number, failure?: Failure): void {
    const wasOpen = this.state.value.kind === "open";
    this.drop();
    const bound = Math.min(FIRST_PAUSE * 2 ** this.attempt, LONGEST_PAUSE);
    const wait = pause ?? (wasOpen ? Math.random() * 100 : bound * (0.5 + Math.random() / 2));
    this.state.value = { kind: "waiting", until: Date.now() + wait, ...(failure && { failure }) };
    this.retryTimer = window.setTimeout(() => this.connect(), wait);
  }
}

/** The seconds that a drain's close reason names. */
function retryAfter(reason: string): number {
  try {
    const { retry_after: seconds } = JSON.parse(reason) as { retry_after?: number };
    return Math.min(Math.max(Number(seconds) || 0, 0), 30);
  } catch {
    return Math.random() * 5;
  }
}
