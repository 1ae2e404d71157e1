/** Conversations as files. */

import * as api from "./api";
import type { StoredMessage } from "./wire";

/** Gives the user a file. */
function save(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The part of a title that every system takes as the name of a file. */
function fileName(title: string): string {
  const plain = title.replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 60).trim();
  return plain || "conversation";
}

function markdownOf({ role, content }: StoredMessage): string {
  return `## ${role === "user" ? "You" : "Answer"}\n\n${content}\n`;
}

/** Saves the branch of a conversation that is shown, as Markdown. Throws where it cannot be read. */
export async function saveMarkdown(id: string, title: string): Promise<void> {
  const parts: string[] = [];
  let read = 0;
  for (let hasMore = true; hasMore; ) {
    const page = await api.messages(id, read);
    const shown = page.messages.filter(({ role }) => role === "user" || role === "assistant");
    parts.push(...shown.map(markdownOf));
    read += page.messages.length;
    hasMore = page.has_more && page.messages.length > 0;
  }
  const text = [`# ${title}\n`, ...parts].join("\n");
  save(`${fileName(title)}.md`, new Blob([text], { type: "text/markdown" }));
}

/** Saves all conversations of the user, in the form that an import takes. Throws where they cannot be
 * read, or not whole. */
export async function saveAll(): Promise<void> {
  const lines = await api.exported();
  // What broke off has no line of this type at its end.
  const end = await lines.slice(-200).text();
  if (!end.trimEnd().split("\n").at(-1)?.includes('"type":"end"')) {
    const message = "The export broke off; try again.";
    throw new api.ApiError(0, { code: "export_broken", message, retryable: true });
  }
  save(`conversations-${new Date().toISOString().slice(0, 10)}.jsonl`, lines);
}
