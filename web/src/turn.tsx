/** One message of a conversation, as it is shown. */

import { useEffect, useRef, useState } from "preact/hooks";
import { image } from "./api";
import { duration, remedyOf, sentence } from "./advice";
import { CopyButton } from "./code";
import type { Conversation } from "./conversation";
import { keepDraft, readDraft } from "./drafts";
import { onEscape } from "./focus";
import { Icon } from "./icons";
import { tooLong } from "./length";
import { Markdown } from "./markdown";
import type { Message, Notes } from "./message";
import type { Picture, StoredPictures } from "./pictures";
import { askAgain, showNew, writeAgain } from "./sessions";
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
  // What was being written in its place, before a reload.
  const [isEdited, setEdited] = useState(() => readDraft(conversation.id, message.id) !== "");
  const button = useRef<HTMLButtonElement>(null);
  const close = () => {
    keepDraft(conversation.id, "", message.id);
    setEdited(false);
    requestAnimationFrame(() => button.current?.focus());
  };
  return (
    <article class={`question ${status}`} data-status={status}>
      <h2 class="hidden">You</h2>
      {isEdited && status === "complete" ? (
        <Editor
          text={readDraft(conversation.id, message.id) || message.text.value}
          onChange={(text) => keepDraft(conversation.id, text, message.id)}
          onCancel={close}
          onSave={(text) => {
            if (!conversation.ask(text, [], message.id)) return;
            keepDraft(conversation.id, "", message.id);
            setEdited(false);
            // The answer is awaited in the field for the next question.
            document.getElementById("question")?.focus();
          }}
        />
      ) : (
        <div class="asked" dir="auto">
          {message.text.value}
        </div>
      )}
      <Pictures of={message.pictures.value} session={conversation.id} />
      {status === "complete" && !isEdited && (
        <footer>
          <Siblings message={message} conversation={conversation} />
          <button
            ref={button}
            type="button"
            class="quiet"
            title="Edit the question"
            aria-disabled={conversation.busy.value}
            onClick={() => !conversation.busy.value && setEdited(true)}
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
            askAgain(message);
            document.getElementById("question")?.focus();
          }}
          edit={() => {
            const { value: pictures } = message.pictures;
            conversation.discard(message);
            writeAgain(message.text.value, Array.isArray(pictures) ? pictures : []);
          }}
          remove={() => {
            conversation.discard(message);
            document.getElementById("question")?.focus();
          }}
        />
      )}
    </article>
  );
}

/** The field in which a question is asked anew. The one before stays, as an alternative. */
function Editor(props: {
  text: string;
  onChange: (text: string) => void;
  onSave: (text: string) => void;
  onCancel: () => void;
}) {
  const [text, setText] = useState(props.text);
  const trouble = tooLong(text);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => field.current?.focus(), []);
  const save = () => {
    if (text.trim() && !trouble) props.onSave(text.trim());
  };
  return (
    <form
      class="editor"
      onKeyDown={onEscape(props.onCancel)}
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
        value={text}
        onInput={(event) => {
          setText(event.currentTarget.value);
          props.onChange(event.currentTarget.value);
        }}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            save();
          }
        }}
      />
      {trouble && (
        <p class="refusal" role="alert">
          {trouble}
        </p>
      )}
      <div class="actions">
        <button type="submit" disabled={!text.trim() || trouble !== ""}>
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
        aria-disabled={isBusy || !other}
        onClick={() => !isBusy && other && conversation.select(other)}
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

/** The images of a question. */
function Pictures({ of, session }: { of: Picture[] | StoredPictures | number; session: string }) {
  if (typeof of === "number") {
    return of ? <p class="pictures">{of === 1 ? "1 image" : `${of} images`}</p> : null;
  }
  if (!Array.isArray(of)) {
    return (
      <p class="pictures">
        {of.digests.map((digest, index) => (
          <StoredPicture key={digest} session={session} digest={digest} name={`Image ${index + 1}`} />
        ))}
      </p>
    );
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

/** An image that the service has. It is asked for when it comes into view. */
function StoredPicture(props: { session: string; digest: string; name: string }) {
  const { session, digest, name } = props;
  const place = useRef<HTMLSpanElement>(null);
  const [url, setUrl] = useState("");
  const [isGone, setGone] = useState(false);
  useEffect(() => {
    let made = "";
    let isLeft = false;
    const seen = new IntersectionObserver(([entry]) => {
      if (!entry?.isIntersecting) return;
      seen.disconnect();
      image(session, digest).then(
        (blob) => {
          if (isLeft) return;
          made = URL.createObjectURL(blob);
          setUrl(made);
        },
        () => setGone(true),
      );
    });
    seen.observe(place.current!);
    return () => {
      isLeft = true;
      seen.disconnect();
      if (made) URL.revokeObjectURL(made);
    };
  }, [session, digest]);
  return (
    <span class="stored" ref={place}>
      {url ? <img src={url} alt={name} /> : isGone && `${name} cannot be shown`}
    </span>
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
      {status === "waiting" && conversation.messages.value.some((other) => other.isOpen && other !== message) && (
        <button
          type="button"
          class="back"
          aria-disabled={conversation.stopping.value === message.id}
          onClick={() => conversation.stop(message)}
        >
          Take it back
        </button>
      )}
      {isGrowing && text === "" && !notes.position && message.reasoning.value === "" && (
        <p class="pending">The answer begins</p>
      )}
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
  const isAgain = conversation.outbox.items.value.some(({ regenerates }) => regenerates === message.id);
  if (isAgain) facts.push("another answer is on its way");
  if (message.status.value === "cancelled") facts.push("stopped");
  if (finish === "length") facts.push("reached the longest answer that was allowed");
  if (finish === "repetition") facts.push("ended because the model repeated itself");
  if (context?.messages_dropped) {
    const { messages_dropped: count } = context;
    facts.push(`${count} older ${count === 1 ? "message was" : "messages were"} left out`);
  }
  if (continued?.length) {
    const isNew = continued.some(({ how }) => how === "restarted");
    facts.push(isNew ? "started again after an interruption" : "continued after an interruption");
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
        aria-disabled={conversation.busy.value}
        onClick={() => !conversation.busy.value && conversation.regenerate(message)}
      >
        <Icon name="again" />
        <span class="hidden">Another answer</span>
      </button>
      <span class="facts">{facts.join(" · ")}</span>
    </footer>
  );
}

/** An error, and what to do about it. */
export function Trouble(props: {
  failure: Failure;
  again?: () => void;
  /** Puts what was refused back into the field. */
  edit?: () => void;
  /** Takes what was refused off the page. */
  remove?: () => void;
  /** Takes the error off the page. */
  dismiss?: () => void;
}) {
  const { failure, again, edit, remove, dismiss } = props;
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
        {edit && (
          <button type="button" onClick={edit}>
            Change it
          </button>
        )}
        {remove && (
          <button type="button" onClick={remove}>
            Remove it
          </button>
        )}
        {dismiss && (
          <button type="button" onClick={dismiss}>
            Dismiss
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
