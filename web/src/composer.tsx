/** The field for the next question, and what belongs to it. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { attachedTo, isUnread, readAttached } from "./attached";
import type { Conversation } from "./conversation";
import { ModelChoice, openDialog, takesImages } from "./dialogs";
import { draftChanges, readDraft } from "./drafts";
import { Icon } from "./icons";
import { tooLong } from "./length";
import { MOST_OUTGOING } from "./outbox";
import { ACCEPTED, MOST_BYTES, MOST_PICTURES, readPicture } from "./pictures";
import { ask, attachImages, userId, writeDraft } from "./sessions";
import { Status } from "./status";

const TAKES_NONE = "The chosen model takes no images; choose another one.";

function imagesOf(data: DataTransfer | null): File[] {
  return [...(data?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
}

export function Composer({ conversation }: { conversation: Conversation }) {
  const { id } = conversation;
  const [text, setText] = useState(() => readDraft(id));
  const field = useRef<HTMLTextAreaElement>(null);
  const files = useRef<HTMLInputElement>(null);
  const pictures = attachedTo(id);
  const [trouble, setTrouble] = useState("");
  const takes = takesImages();
  const long = tooLong(text);
  const refusal = long || trouble || (pictures.length > 0 && !takes && TAKES_NONE);
  const isRunning = conversation.messages.value.some((message) => message.isOpen);

  // Before the field is shown: a text of the last conversation would be sent in this one.
  useLayoutEffect(() => {
    setText(readDraft(id));
    void readAttached(id);
    setTrouble("");
    field.current?.focus();
  }, [id]);

  // Another model may take what this one did not.
  useLayoutEffect(() => setTrouble(""), [takes]);

  // Another tab has the same draft.
  const changes = draftChanges.value;
  useLayoutEffect(() => {
    setText(readDraft(id));
  }, [changes]);

  // A file that is dropped beside the field would be opened in place of the page.
  useEffect(() => {
    const over = (event: DragEvent) => {
      if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
    };
    const drop = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files") || event.defaultPrevented) return;
      event.preventDefault();
      const images = imagesOf(event.dataTransfer);
      if (images.length) void add(images);
      else setTrouble("Only images can be added to a message.");
    };
    addEventListener("dragover", over);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("drop", drop);
    };
  }, [id]);

  // A button that goes, as the answer ends, leaves its focus to the field.
  const stopped = useRef(false);
  useLayoutEffect(() => {
    if (stopped.current && !isRunning) field.current?.focus();
    if (!isRunning) stopped.current = false;
  }, [isRunning]);

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

  const add = async (files: Iterable<File>) => {
    setTrouble(takesImages() ? "" : TAKES_NONE);
    if (!takesImages()) return;
    const user = userId.peek();
    for (const file of files) {
      try {
        if ((await readAttached(id)).length >= MOST_PICTURES) {
          throw new Error(`A message has at most ${MOST_PICTURES} images.`);
        }
        const picture = await readPicture(file);
        // What a user adds while signing out is nobody's.
        if (userId.peek() !== user) return;
        const all = [...attachedTo(id), picture];
        if (all.reduce((sum, { bytes }) => sum + bytes, 0) > MOST_BYTES) {
          throw new Error("The images of a message have at most 4 MB together.");
        }
        attachImages(id, all);
      } catch (error) {
        setTrouble((error as Error).message);
      }
    }
    field.current?.focus();
  };

  const send = () => {
    const question = text.trim();
    if (!question || long) return;
    // Images of before a reload take a moment to read; the question does not go without them.
    if (isUnread(id)) return void readAttached(id);
    if (conversation.outbox.isFull) {
      setTrouble(`${MOST_OUTGOING} messages are on their way; wait until one of them was taken.`);
      return;
    }
    if (!ask(question, pictures)) return;
    change("");
    if (pictures.length) attachImages(id, []);
    setTrouble("");
  };

  /** Takes the images of what was pasted or dropped; what has none is left to the browser. */
  const take = (event: Event, data: DataTransfer | null) => {
    const images = imagesOf(data);
    if (!images.length) return;
    event.preventDefault();
    void add(images);
  };

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };

  // Wherever the focus is, unless Escape closes something there.
  useEffect(() => {
    if (!isRunning) return undefined;
    const onEscape = (event: KeyboardEvent) => {
      const isElsewhere =
        event.target instanceof Element &&
        event.target.closest("input, select, textarea:not(#question), dialog, .menu");
      if (event.key !== "Escape" || event.defaultPrevented || isElsewhere) return;
      event.preventDefault();
      conversation.stop();
    };
    addEventListener("keydown", onEscape);
    return () => removeEventListener("keydown", onEscape);
  }, [isRunning, conversation]);

  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
      onPaste={(event) => take(event, event.clipboardData)}
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
          placeholder="Write a message"
          aria-describedby="keys"
          value={text}
          onInput={(event) => change(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {pictures.length > 0 && (
          <ul class="attached" aria-label="Images of your message">
            {pictures.map((picture) => (
              <li key={picture.url}>
                <img src={picture.url} alt={picture.name} />
                <button
                  type="button"
                  class="round"
                  title={`Remove ${picture.name}`}
                  onClick={() => {
                    URL.revokeObjectURL(picture.url);
                    attachImages(id, pictures.filter((other) => other !== picture));
                    field.current?.focus();
                  }}
                >
                  <Icon name="close" />
                  <span class="hidden">Remove {picture.name}</span>
                </button>
              </li>
            ))}
          </ul>
        )}
        {refusal && (
          <p class="refusal" role="alert">
            {refusal}
          </p>
        )}
        <input
          ref={files}
          id="images"
          type="file"
          accept={ACCEPTED}
          multiple
          hidden
          onChange={(event) => {
            const { files } = event.currentTarget;
            void add([...(files ?? [])]);
            event.currentTarget.value = "";
          }}
        />
        <div class="tools">
          {takes && (
            <button
              type="button"
              class="quiet"
              title="Add images"
              onClick={() => files.current?.click()}
            >
              <Icon name="image" />
              <span class="hidden">Add images</span>
            </button>
          )}
          <ModelChoice class="model" label="Model that answers" />
          <button
            type="button"
            class="quiet chosen"
            title="Settings"
            onClick={() => openDialog("settings")}
          >
            <Icon name="sliders" />
            <span class="hidden">Settings</span>
          </button>
          <span id="keys" class="keys">
            {isRunning ? "Escape stops the answer" : "Enter sends, Shift+Enter begins a line"}
          </span>
          {isRunning && (
            <button
              type="button"
              class="round stop"
              title="Stop the answer"
              onClick={() => {
                stopped.current = true;
                conversation.stop();
              }}
            >
              <Icon name="stop" />
              <span class="hidden">Stop the answer</span>
            </button>
          )}
          <button type="submit" class="round" title="Send" disabled={!text.trim() || long !== ""}>
            <Icon name="send" />
            <span class="hidden">Send</span>
          </button>
        </div>
      </div>
    </form>
  );
}
