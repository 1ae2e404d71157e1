/** One message of a conversation, as it is shown. */

import { useEffect, useRef, useState } from "preact/hooks";
import { duration, remedyOf, sentence } from "./advice";
import { CopyButton } from "./code";
import { LONGEST_QUESTION } from "./conversation";
import type { Conversation, Message, Notes } from "./conversation";
import { Icon } from "./icons";
import { Markdown } from "./markdown";
import type { Picture } from "./pictures";
import { ask, showNew } from "./sessions";
import { openDialog } from "./dialogs";
import type { Failure } from "./wire";

export function Turn({ message, conversation }: { message: Message; conversation: Conversation }) {
  return message.role === "user" ? (
    <Question message={message} conversation={conversation} />
  ) : (
    <Answer message={message} conversation={conversation} />
  );
}

function Question({ message, conversation }: { message: Message; conversation: Conversation }) {
  const status = message.status.value;
  const { failure } = message.notes.value;
  const [isEdited, setEdited] = useState(false);
  const button = useRef<HTMLButtonElement>(null);
  const close = () => {
    setEdited(false);
    requestAnimationFrame(() => button.current?.focus());
  };
  return (
    <article class={`question ${status}`} data-status={status}>
      <h2 class="hidden">You</h2>
      {isEdited ? (
        <Editor
          text={message.text.value}
          onCancel={close}
          onSave={(text) => conversation.ask(text, [], message.id) && setEdited(false)}
        />
      ) : (
        <div class="asked" dir="auto">
          {message.text.value}
        </div>
      )}
      <Pictures of={message.pictures.value} />
      {status === "complete" && !isEdited && (
        <footer>
          <Siblings message={message} conversation={conversation} />
          <button
            ref={button}
            type="button"
            class="quiet"
            title="Edit the question"
            disabled={conversation.busy.value}
            onClick={() => setEdited(true)}
          >
            <Icon name="pencil" />
            <span class="hidden">Edit the question</span>
          </button>
        </footer>
      )}
      {status === "refused" && failure && (
        <Trouble
          failure={failure}
          again={() => {
            conversation.discard(message);
            const { value: pictures } = message.pictures;
            ask(message.text.value, typeof pictures === "number" ? [] : pictures, message.edits);
          }}
        />
      )}
    </article>
  );
}

/** The field in which a question is asked anew. The one before stays, as an alternative. */
function Editor(props: {
  text: string;
  onSave: (text: string) => void;
  onCancel: () => void;
}) {
  const [text, setText] = useState(props.text);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => field.current?.focus(), []);
  const save = () => {
    if (text.trim()) props.onSave(text.trim());
  };
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        save();
      }}
    >
      <textarea
        ref={field}
        aria-label="Your question"
        dir="auto"
        rows={Math.min(text.split("\n").length + 1, 12)}
        maxLength={LONGEST_QUESTION}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") props.onCancel();
          else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            save();
          }
        }}
      />
      <div class="actions">
        <button type="submit" disabled={!text.trim()}>
          Ask
        </button>
        <button type="button" onClick={props.onCancel}>
          Cancel
        </button>
      </div>
    </form>
  );
}

/** The way to the alternatives of a message. */
function Siblings({ message, conversation }: { message: Message; conversation: Conversation }) {
  const siblings = message.siblings.value;
  if (!siblings || siblings.count < 2) return null;
  const { index, count, ids } = siblings;
  const isBusy = conversation.busy.value;
  const step = (by: 1 | -1, title: string) => {
    const other = ids[index + by];
    return (
      <button
        type="button"
        class="quiet"
        title={title}
        disabled={isBusy || !other}
        onClick={() => other && conversation.select(other)}
      >
        <Icon name={by < 0 ? "left" : "right"} />
        <span class="hidden">{title}</span>
      </button>
    );
  };
  const what = message.role === "user" ? "question" : "answer";
  return (
    <span class="siblings" role="group" aria-label={`Alternatives of this ${what}`}>
      {step(-1, `The ${what} before`)}
      <span class="place">
        {index + 1} / {count}
      </span>
      {step(1, `The next ${what}`)}
    </span>
  );
}

/** The images of a question. The service gives none back, so that another tab has their number. */
function Pictures({ of }: { of: Picture[] | number }) {
  if (typeof of === "number") {
    return of ? <p class="pictures">{of === 1 ? "1 image" : `${of} images`}</p> : null;
  }
  if (!of.length) return null;
  return (
    <p class="pictures">
      {of.map(({ name, url }) => (
        <img key={url} src={url} alt={name} />
      ))}
    </p>
  );
}

function Answer({ message, conversation }: { message: Message; conversation: Conversation }) {
  const status = message.status.value;
  const notes = message.notes.value;
  const text = message.text.value;
  const isGrowing = status === "streaming";
  return (
    <article
      class={`answer ${status}`}
      data-status={status}
      data-generation={message.id}
      aria-busy={message.isOpen}
    >
      <h2 class="hidden">Answer</h2>
      <Reasoning message={message} isGrowing={isGrowing && text === ""} />
      {status === "waiting" && <Waiting notes={notes} />}
      {isGrowing && text === "" && <p class="pending">Thinking</p>}
      <div class="prose">
        <Markdown text={text} isGrowing={isGrowing} />
      </div>
      {isGrowing && (notes.position ?? 0) > 0 && <Waiting notes={notes} />}
      {status === "failed" && notes.failure && (
        <Trouble failure={notes.failure} again={() => conversation.regenerate(message)} />
      )}
      {!message.isOpen && (
        <Footer message={message} notes={notes} conversation={conversation} />
      )}
    </article>
  );
}

/** What the model thought, folded unless the user opens it. */
function Reasoning({ message, isGrowing }: { message: Message; isGrowing: boolean }) {
  const text = message.reasoning.value;
  if (!text) return null;
  return (
    <details class="reasoning">
      <summary>{isGrowing ? "Thinking…" : "Reasoning"}</summary>
      <div class="thought" dir="auto">
        {text}
      </div>
    </details>
  );
}

function Waiting({ notes: { position, eta } }: { notes: Notes }) {
  return (
    <p class="pending">
      {position
        ? `Number ${position} in the queue${eta == null ? "" : `, about ${duration(eta)}`}`
        : "Waiting for a model"}
    </p>
  );
}

function Footer(props: { message: Message; notes: Notes; conversation: Conversation }) {
  const { message, notes, conversation } = props;
  const { model, usage, context, continued, finish } = notes;
  const facts: string[] = [];
  if (message.status.value === "cancelled") facts.push("stopped");
  if (finish === "length") facts.push("reached the longest answer that was allowed");
  if (finish === "repetition") facts.push("ended because the model repeated itself");
  if (context?.messages_dropped) {
    const { messages_dropped: count } = context;
    facts.push(`${count} older ${count === 1 ? "message was" : "messages were"} left out`);
  }
  if (continued?.length) {
    const isNew = continued.some(({ how }) => how === "restarted");
    facts.push(isNew ? "begun anew after an interruption" : "continued after an interruption");
  }
  if (model) facts.push(model.replace(/:latest$/, ""));
  if (usage?.completion_tokens) facts.push(`${usage.completion_tokens} tokens`);
  return (
    <footer>
      <Siblings message={message} conversation={conversation} />
      {message.text.value && <CopyButton text={message.text.value} label="Copy answer" />}
      <button
        type="button"
        class="quiet"
        title="Another answer"
        disabled={conversation.busy.value}
        onClick={() => conversation.regenerate(message)}
      >
        <Icon name="again" />
        <span class="hidden">Another answer</span>
      </button>
      <span class="facts">{facts.join(" · ")}</span>
    </footer>
  );
}

/** An error, and what to do about it. */
export function Trouble({ failure, again }: { failure: Failure; again?: () => void }) {
  const wait = useCountdown(failure.retryAt);
  const remedy = remedyOf(failure);
  return (
    <div class="trouble">
      <p>{sentence(failure.message)}</p>
      <div class="actions">
        {remedy === "sign-in" && (
          <button type="button" onClick={() => openDialog("account")}>
            Sign in
          </button>
        )}
        {remedy === "models" && (
          <button type="button" onClick={() => openDialog("settings")}>
            Choose a model
          </button>
        )}
        {remedy === "new" && (
          <button type="button" onClick={showNew}>
            New conversation
          </button>
        )}
        {again && (
          <button type="button" disabled={wait > 0} onClick={again}>
            {wait > 0 ? `Ask again in ${duration(wait)}` : "Ask again"}
          </button>
        )}
      </div>
    </div>
  );
}

/** Counts the seconds down to a time. */
function useCountdown(until?: number): number {
  const left = () => (until ? Math.max(0, Math.ceil((until - Date.now()) / 1000)) : 0);
  const [seconds, setSeconds] = useState(left);
  useEffect(() => {
    setSeconds(left());
    if (!until) return undefined;
    const timer = setInterval(() => {
      setSeconds(left());
      if (left() === 0) clearInterval(timer);
    }, 1000);
    return () => clearInterval(timer);
  }, [until]);
  return seconds;
}

export function JumpButton({ onClick }: { onClick: () => void }) {
  return (
    <button type="button" class="jump" title="To the newest" onClick={onClick}>
      <Icon name="down" />
      <span class="hidden">To the newest</span>
    </button>
  );
}
