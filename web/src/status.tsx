/** The status line: the one place that tells a screen reader what happens, in whole sentences. */

import { useEffect, useState } from "preact/hooks";
import { duration, sentence } from "./advice";
import type { Conversation } from "./conversation";
import { openDialog } from "./dialogs";
import type { LinkState } from "./link";
import type { Message } from "./message";
import { ended } from "./sessions";

/** A connection that is back within this time is not worth a word, in milliseconds. */
const PATIENCE = 700;

export function Status({ conversation }: { conversation: Conversation }) {
  const state = conversation.link.state.value;
  const isLate = useLate(state.kind === "open");
  const trouble = isLate ? troubleOf(state) : "";
  const quiet = trouble ? "" : progress(conversation);
  return (
    <div class="status">
      <p role="status" class={trouble ? "" : "hidden"}>
        {trouble || quiet}
      </p>
      {state.kind === "signed-out" && (
        <button type="button" onClick={() => openDialog("account")}>
          Sign in
        </button>
      )}
      {isLate && state.kind === "waiting" && state.until - Date.now() > 500 && (
        <button type="button" onClick={() => conversation.link.connectNow()}>
          Try now
        </button>
      )}
      {conversation.expiresAt.value && (
        <button type="button" onClick={() => openDialog("account")}>
          Your sign-in expires soon: renew it
        </button>
      )}
    </div>
  );
}

/** Whether the connection has been missing for longer than a reconnect takes. */
function useLate(isOpen: boolean): boolean {
  const [isLate, setLate] = useState(false);
  useEffect(() => {
    if (isOpen) {
      setLate(false);
      return undefined;
    }
    const timer = setTimeout(() => setLate(true), PATIENCE);
    return () => clearTimeout(timer);
  }, [isOpen]);
  return isLate;
}

function troubleOf(state: LinkState): string {
  switch (state.kind) {
    case "open":
      return "";
    case "connecting":
      return "Connecting…";
    case "waiting":
      return state.failure
        ? sentence(state.failure.message)
        : "The connection is lost; it is being opened again. What you wrote is kept.";
    case "signed-out":
    case "stopped":
      return sentence(state.failure.message);
  }
}

function reason({ notes }: Message): string {
  const { failure } = notes.value;
  return failure ? sentence(failure.message) : "";
}

/** What the newest answer does, in words that change rarely. */
function progress(conversation: Conversation): string {
  const { value: doubt } = conversation.outbox.trouble;
  if (doubt) return `The message is not taken yet, and is sent again. ${sentence(doubt.message)}`;
  const { value: last } = ended;
  if (last?.status.value === "refused" && conversation.messages.value.includes(last)) {
    return `The message was refused. ${reason(last)}`;
  }
  const { value: failure } = conversation.failure;
  if (failure) return sentence(failure.message);
  if (conversation.outbox.items.value.some(({ regenerates }) => regenerates)) {
    return "Another answer is on its way.";
  }
  const message = conversation.messages.value.findLast(({ role }) => role === "assistant");
  if (!message) return "";
  switch (message.status.value) {
    case "waiting": {
      const { position, eta } = message.notes.value;
      if (!position) return "The answer is on its way.";
      return `Number ${position} in the queue${eta == null ? "" : `, about ${duration(eta)}`}.`;
    }
    case "streaming":
      if (conversation.stopping.value === message.id) return "The answer is being stopped.";
      return "The answer is being written.";
    case "complete":
      // Only what ended while this page was open is news.
      return ended.value === message ? "The answer is complete." : "";
    case "cancelled":
      return ended.value === message ? "The answer was stopped." : "";
    case "failed":
      return ended.value === message ? `The answer failed. ${reason(message)}` : "";
    default:
      return "";
  }
}
