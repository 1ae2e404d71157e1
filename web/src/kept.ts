/** What the browser keeps. A browser that keeps nothing (private windows, a full disk) costs the
 * comfort and not the chat: each failure reads as nothing kept. */

const PREFIX = "jarvis.";

function guarded<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch {
    return otherwise;
  }
}

/** Reads a value of localStorage. */
export function read<T>(key: string, otherwise: T): T {
  return guarded(() => {
    const text = localStorage.getItem(PREFIX + key);
    return text === null ? otherwise : (JSON.parse(text) as T);
  }, otherwise);
}

/** Writes a value to localStorage; undefined removes it. */
export function write(key: string, value: unknown): void {
  guarded(() => {
    if (value === undefined) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, JSON.stringify(value));
  }, undefined);
}

/** Returns the keys of localStorage that begin like this. */
export function keys(start: string): string[] {
  const begins = (key: string) => key.startsWith(PREFIX + start);
  return guarded(() => Object.keys(localStorage).filter(begins), []).map((key) => key.slice(PREFIX.length));
}

/** Calls `changed` when another tab writes this key. */
export function watch(key: string, changed: () => void): void {
  addEventListener("storage", (event) => {
    if (event.key === PREFIX + key || event.key === null) changed();
  });
}

/** Reads the token: it lives as long as the tab, and in no other. */
export function readToken(): string {
  return guarded(() => sessionStorage.getItem(`${PREFIX}token`) ?? "", "");
}

/** Keeps the token until the tab is closed; an empty one is removed. */
export function writeToken(token: string): void {
  guarded(() => {
    if (token) sessionStorage.setItem(`${PREFIX}token`, token);
    else sessionStorage.removeItem(`${PREFIX}token`);
  }, undefined);
}

/** Returns a random UUID. `crypto.randomUUID` exists only in a secure context, and the page is also
 * opened over http on a local network. */
export function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Whether a text is a UUID in its usual form, and not the nil one. */
export function isUuid(text: string): boolean {
  return UUID.test(text) && !/^[0-]+$/.test(text);
}
