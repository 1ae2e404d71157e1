/** What a user can do about an error, by its code. The service's own text says what is wrong. */

import type { Failure } from "./wire";

export type Remedy = "again" | "models" | "new" | "sign-in" | "edit" | "none";

const REMEDIES: Record<string, Remedy> = {
  context_too_long: "new",
  session_full: "new",
  model_not_found: "models",
  model_too_large: "models",
  model_unavailable: "models",
  model_unsupported: "models",
  sign_in_required: "sign-in",
  token_expired: "sign-in",
  token_invalid: "sign-in",
  validation_failed: "edit",
  session_not_found: "new",
  images_lost: "edit",
  stopped: "edit",
};

/** Returns the remedy for a failure. */
export function remedyOf({ code, retryable }: Failure): Remedy {
  return REMEDIES[code] ?? (retryable ? "again" : "edit");
}

/** Returns the text as a sentence. */
export function sentence(text: string): string {
  const trimmed = text.trim();
  const begun = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** Writes seconds as people say them. */
export function duration(seconds: number): string {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}
