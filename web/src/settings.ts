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

const readSettings = (): Settings => ({ ...DEFAULTS, ...kept.read("settings", {}) });
const readTheme = () => kept.read<Theme>("theme", "system");

/** The settings that the browser has: they are not written again, or two tabs would answer each other. */
let known = readSettings();
export const settings = signal(known);
export const theme = signal(readTheme());

effect(() => {
  if (settings.value !== known) kept.write("settings", (known = settings.value));
});
kept.watch("settings", () => (settings.value = known = readSettings()));
kept.watch("theme", () => (theme.value = readTheme()));
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
