/** The field for the next question, and what belongs to it. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Conversation } from "./conversation";
import { openDialog } from "./dialogs";
import { Icon } from "./icons";
import { ask, readDraft, writeDraft } from "./sessions";
import { settings } from "./settings";
import { Status } from "./status";

/** The longest question, in characters. */
const LONGEST = 32_768;

export function Composer({ conversation }: { conversation: Conversation }) {
  const { id } = conversation;
  const [text, setText] = useState(() => readDraft(id));
  const field = useRef<HTMLTextAreaElement>(null);
  const isRunning = conversation.messages.value.some((message) => message.isOpen);

  useEffect(() => {
    setText(readDraft(id));
    field.current?.focus();
  }, [id]);

  // The field grows with its text.
  useLayoutEffect(() => {
    const element = field.current;
    if (!element) return;
    element.style.height = "auto";
    element.style.height = `${element.scrollHeight}px`;
  }, [text]);

  const change = (value: string) => {
    setText(value);
    writeDraft(id, value);
  };

  const send = () => {
    const question = text.trim();
    if (question && ask(question)) change("");
  };

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape" && isRunning) {
      event.preventDefault();
      conversation.stop();
    }
  };

  const { model } = settings.value;
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <Status conversation={conversation} />
      <div class="field">
        <label class="hidden" for="question">
          Your message
        </label>
        <textarea
          id="question"
          ref={field}
          rows={1}
          dir="auto"
          maxLength={LONGEST}
          placeholder="Write a message"
          aria-describedby="keys"
          value={text}
          onInput={(event) => change(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        <div class="tools">
          <button type="button" class="quiet chosen" onClick={() => openDialog("settings")}>
            <Icon name="sliders" />
            <span class="label">{model ? model.replace(/:latest$/, "") : "Default model"}</span>
          </button>
          <span id="keys" class="keys">
            Enter sends, Shift+Enter begins a line{isRunning && ", Escape stops"}
          </span>
          {isRunning && (
            <button
              type="button"
              class="round stop"
              title="Stop the answer"
              onClick={() => conversation.stop()}
            >
              <Icon name="stop" />
              <span class="hidden">Stop the answer</span>
            </button>
          )}
          <button type="submit" class="round" title="Send" disabled={!text.trim()}>
            <Icon name="send" />
            <span class="hidden">Send</span>
          </button>
        </div>
      </div>
    </form>
  );
}
