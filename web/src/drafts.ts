/** What was written and not sent. */

import { signal } from "@preact/signals";
import * as kept from "./kept";

/** Drafts that are kept, at most. */
const MOST_DRAFTS = 50;

/** Reads what was written and not sent in a session; with `question`, in the place of that one. */
export function readDraft(id: string, question = ""): string {
  return kept.read<Record<string, string>>("drafts", {})[draftKey(id, question)] ?? "";
}

/** Keeps what was written and not sent in a session; with `question`, in the place of that one. */
export function keepDraft(id: string, text: string, question = ""): void {
  const key = draftKey(id, question);
  // The one that was written last is the last to go.
  keepDrafts((drafts) => [...drafts.filter(([other]) => other !== key), ...(text ? [[key, text] as Draft] : [])]);
}

const draftKey = (id: string, question: string) => (question ? `${id}/${question}` : id);

export type Draft = [key: string, text: string];

/** Changes the drafts, the one that was written last last. */
export function keepDrafts(change: (drafts: Draft[]) => Draft[]): void {
  const drafts = change(Object.entries(kept.read<Record<string, string>>("drafts", {}))).slice(-MOST_DRAFTS);
  kept.write("drafts", drafts.length ? Object.fromEntries(drafts) : undefined);
}

/** Counts the changes of drafts by other tabs: a session has one draft, in however many tabs. */
export const draftChanges = signal(0);
kept.watch("drafts", () => (draftChanges.value += 1));
