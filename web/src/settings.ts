/** What the user chose for the next questions, and how the page looks. */

import { effect, signal } from "@preact/signals";
import * as kept from "./kept";

export interface Settings {
  /** Empty: the model that the service chooses. */
  model: string;
  temperature: number;
  system: string;
  /** Tokens of an answer; -1 is the largest number allowed. */
  maxTokens: number;
  think: "" | "low" | "medium" | "high";
}

export const DEFAULTS: Settings = {
  model: "",
  temperature: 0.7,
  system: "",
  maxTokens: 1000,
  think: "",
};

export type Theme = "system" | "light" | "dark";

export const settings = signal<Settings>({ ...DEFAULTS, ...kept.read("settings", {}) });
export const theme = signal<Theme>(kept.read<Theme>("theme", "system"));

effect(() => kept.write("settings", settings.value));
effect(() => {
  // theme.js reads the same before the first paint.
  kept.write("theme", theme.value === "system" ? undefined : theme.value);
  const root = document.documentElement;
  if (theme.value === "system") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
});

/** Returns the fields of a `chat` that differ from the defaults of the service. */
export function request(): Record<string, unknown> {
  const { model, temperature, system, maxTokens, think } = settings.peek();
  return {
    ...(model && { model }),
    ...(temperature !== DEFAULTS.temperature && { temperature }),
    ...(system.trim() && { system }),
    ...(maxTokens !== DEFAULTS.maxTokens && { max_tokens: maxTokens }),
    ...(think && { think }),
  };
}
