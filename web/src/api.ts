/** The REST routes that the page uses. */

import { signal } from "@preact/signals";
import { readToken, writeToken } from "./kept";
import type { Failure, StoredMessage } from "./wire";

/** The time after which a request counts as lost, in milliseconds. */
const LIMIT = 15_000;
/** The time that a question with images may take to be sent. */
const UPLOAD_LIMIT = 60_000;
/** The time that all of a user's sessions may take, as the service limits it. */
const TRANSFER_LIMIT = 600_000;

/** The token or API key of this tab; empty while the caller is anonymous. */
export const token = signal(readToken());

/** Signs in with a token, or out with an empty one. */
export function setToken(value: string): void {
  writeToken(value);
  token.value = value;
}

/** A request that was refused or did not arrive. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly failure: Failure,
  ) {
    super(failure.message);
  }
}

/** Whether a failure asks for another sign-in. */
export function asksForSignIn(code: string): boolean {
  return code === "sign_in_required" || code === "token_expired" || code === "token_invalid";
}

/** The problem document of a response, as a failure. */
async function failureOf(response: Response): Promise<Failure> {
  const problem = (await response.json().catch(() => ({}))) as Record<string, unknown>;
  const seconds = Number(response.headers.get("retry-after"));
  const failure: Failure = {
    code: String(problem.code ?? `status_${response.status}`),
    message: String(problem.detail ?? `The service answered with status ${response.status}.`),
    retryable: response.status === 429 || response.status >= 500,
  };
  if (seconds > 0) failure.retryAt = Date.now() + seconds * 1000;
  return failure;
}

/** Sends a request and returns its response. Throws `ApiError`; its status is 0 where no response came.
 * `as` is used in place of the token. */
async function send(
  method: string,
  path: string,
  headers: Record<string, string>,
  body: BodyInit | null,
  limit: number | AbortSignal,
  as: string = token.value,
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: as ? { ...headers, authorization: `Bearer ${as}` } : headers,
      body,
      signal: typeof limit === "number" ? AbortSignal.timeout(limit) : limit,
      credentials: "omit",
    });
  } catch {
    const message = "The service cannot be reached; check the connection.";
    throw new ApiError(0, { code: "unreachable", message, retryable: true });
  }
  if (!response.ok) throw new ApiError(response.status, await failureOf(response));
  return response;
}

const JSON_BODY = { "content-type": "application/json" };

/** Sends a request and returns the JSON of its response. Throws `ApiError`. */
export async function call<T>(method: string, path: string, body?: object, as?: string): Promise<T> {
  const headers = body ? JSON_BODY : {};
  const text = body ? JSON.stringify(body) : null;
  const response = await send(method, path, headers, text, LIMIT, as);
  return (await response.json()) as T;
}

export interface Model {
  name: string;
  size: number;
  /** Whether it takes images; absent where no host has said. */
  images?: boolean;
}

export interface SessionInfo {
  session_id: string;
  title: string;
  model: string;
  updated_at: string;
  pinned: boolean;
  archived: boolean;
  /** Whether an answer is being written, wherever it was asked for. */
  running: boolean;
}

export type Marks = Partial<Pick<SessionInfo, "pinned" | "archived">>;

/** A message by which a session was found. */
export interface FoundMessage {
  session_id: string;
  excerpt: string;
}

export interface SessionPage {
  sessions: SessionInfo[];
  next_cursor: string | null;
  matches?: FoundMessage[];
  incomplete?: boolean;
}

export interface Limit {
  limit: string;
  unit: string;
  quota: number;
  used: number;
  remaining: number;
  window_seconds: number | null;
  reset_seconds: number | null;
}

export interface UsageReport {
  user_id: string;
  limits: Limit[];
}

/** Asks a question that has images, which a WebSocket cannot send. Its answer comes over the WebSocket,
 * as those of all turns of the session do. `key` makes a repeat the same turn. Returns its generation.
 * Throws `ApiError`. */
export async function askWithImages(
  key: string,
  question: object,
  signal: AbortSignal,
): Promise<string> {
  const headers = { ...JSON_BODY, "idempotency-key": key };
  const body = JSON.stringify({ ...question, stream: true });
  const limit = AbortSignal.any([signal, AbortSignal.timeout(UPLOAD_LIMIT)]);
  return generationOf(await send("POST", "/api/v1/chat", headers, body, limit));
}

/** Reads the events of a stream until they have this, and no further. Undefined where they do not. */
async function readUntil(response: Response, pattern: RegExp): Promise<string | undefined> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      text += value ?? "";
      const found = pattern.exec(text)?.[1];
      if (found || done) return found;
    }
  } catch {
    return undefined;
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function generationOf(response: Response): Promise<string> {
  const generation = await readUntil(response, /"generation_id":"([0-9a-f-]{36})"/);
  if (generation) return generation;
  const message = "The connection was lost before the service had the question.";
  throw new ApiError(0, { code: "unreachable", message, retryable: true });
}

const SESSIONS = "/api/v1/chat/sessions";
/** The time within which the events of a turn that ended come. */
const EVENTS_LIMIT = 5000;

/** Whether a turn was cancelled, or is not known at all. False where that cannot be seen soon. */
export async function hasVanished(session: string, generation: string): Promise<boolean> {
  const path = `${SESSIONS}/${session}/events?generation_id=${generation}`;
  try {
    const response = await send("GET", path, {}, null, EVENTS_LIMIT);
    const end = /"type":"(cancelled|stream_start|stream_end|response|error)"/;
    return response.body !== null && (await readUntil(response, end)) === "cancelled";
  } catch (error) {
    return error instanceof ApiError && error.status === 404;
  }
}

export const models = () => call<{ models: Model[]; default?: string }>("GET", "/api/v1/chat/models");
export const usage = (as?: string) => call<UsageReport>("GET", "/api/v1/usage", undefined, as);
export const describe = (id: string) => call<SessionInfo>("GET", `${SESSIONS}/${id}?limit=0`);
export const rename = (id: string, title: string) =>
  call<SessionInfo>("PATCH", `${SESSIONS}/${id}`, { title });
export const mark = (id: string, marks: Marks) =>
  call<SessionInfo>("PATCH", `${SESSIONS}/${id}`, marks);
export const claim = (id: string) => call<SessionInfo>("POST", `${SESSIONS}/${id}/claim`);
export const sessions = (cursor: string, words = "") => {
  const query = new URLSearchParams({ limit: "100", ...(cursor && { cursor }), ...(words && { q: words }) });
  return call<SessionPage>("GET", `${SESSIONS}?${query}`);
};

/** Returns an image of a session's message. Throws `ApiError`. */
export async function image(session: string, digest: string): Promise<Blob> {
  return (await send("GET", `${SESSIONS}/${session}/images/${digest}`, {}, null, UPLOAD_LIMIT)).blob();
}

/** Returns a page of a session's history, oldest first, without so many of the oldest. */
export const messages = (id: string, skip: number) =>
  call<{ messages: StoredMessage[]; has_more: boolean }>(
    "GET",
    `${SESSIONS}/${id}?limit=500&skip=${skip}`,
  );

/** Returns all of a user's sessions as the service exports them. Throws `ApiError`. */
export async function exported(): Promise<Blob> {
  const response = await send("GET", "/api/v1/chat/export", {}, null, TRANSFER_LIMIT);
  return response.blob();
}

export interface Imported {
  sessions_imported: number;
  sessions_skipped: number;
}

/** Takes exported sessions into the user's account. Throws `ApiError`. */
export async function imported(lines: Blob): Promise<Imported> {
  const headers = { "content-type": "application/x-ndjson" };
  const response = await send("POST", "/api/v1/chat/import", headers, lines, TRANSFER_LIMIT);
  return (await response.json()) as Imported;
}

/** Deletes a session. One that is gone already counts as deleted. */
export async function remove(id: string): Promise<void> {
  try {
    await call("DELETE", `${SESSIONS}/${id}`);
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) throw error;
  }
}
