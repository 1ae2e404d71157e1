/** The conversation: its messages in order, scrolled to the newest while the reader is there. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Conversation } from "./conversation";
import { keepFocus } from "./focus";
import { JumpButton, Trouble, Turn } from "./turn";

/** The distance from the end, in pixels, within which the reader counts as at the end. */
const NEAR = 60;

export function Log({ conversation }: { conversation: Conversation }) {
  const messages = conversation.messages.value;
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const log = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const lastTop = useRef(0);
  const [isAway, setAway] = useState(false);

  const toEnd = () => {
    const element = scroller.current;
    if (element) element.scrollTop = element.scrollHeight;
  };

  // After layout and before paint: the reader sees the end stay, and nothing jump.
  useEffect(() => {
    const observer = new ResizeObserver(() => {
      if (follows.current) toEnd();
    });
    if (content.current) observer.observe(content.current);
    if (scroller.current) observer.observe(scroller.current);
    return () => observer.disconnect();
  }, []);

  useEffect(() => (log.current ? keepFocus(log.current) : undefined), []);

  useLayoutEffect(() => {
    follows.current = true;
    setAway(false);
    toEnd();
  }, [conversation]);

  // Whoever asks wants to see the answer.
  const asked = messages.filter(({ role }) => role === "user").length;
  const last = messages.at(-1);
  useLayoutEffect(() => {
    if (last?.status.peek() === "sending") {
      follows.current = true;
      toEnd();
    }
  }, [asked]);

  const onScroll = () => {
    const element = scroller.current;
    if (!element) return;
    const isNear = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
    // A text that grew since the page scrolled is no reason to stop following: only a reader scrolls up.
    if (isNear) follows.current = true;
    else if (element.scrollTop < lastTop.current) follows.current = false;
    lastTop.current = element.scrollTop;
    setAway(!follows.current);
  };

  const loadOlder = () => {
    // What is read now stays where it is while older messages appear above it.
    const element = scroller.current;
    const height = element?.scrollHeight ?? 0;
    const stop = conversation.messages.subscribe(() => {
      requestAnimationFrame(() => {
        if (element && element.scrollHeight > height) {
          element.scrollTop += element.scrollHeight - height;
          stop();
        }
      });
    });
    conversation.loadOlder();
    setTimeout(stop, 5000);
  };

  const { value: failure } = conversation.failure;
  return (
    <div
      ref={scroller}
      class="scroller"
      role="group"
      aria-label="Messages"
      tabIndex={0}
      onScroll={onScroll}
    >
      <div ref={content} class="column">
        {conversation.hasMore.value && (
          <button type="button" class="older" onClick={loadOlder}>
            Earlier messages
          </button>
        )}
        {/* A growing text is not read out piece by piece: the status line tells what happens. */}
        <div ref={log} role="log" aria-live="off" aria-label="Conversation">
          {messages.map((message) => (
            <Turn key={keyOf(message)} message={message} conversation={conversation} />
          ))}
        </div>
        {failure && <Trouble failure={failure} dismiss={() => (conversation.failure.value = undefined)} />}
        {messages.length === 0 && <Welcome isLoaded={conversation.loaded.value} />}
      </div>
      {isAway && <JumpButton onClick={toEnd} />}
    </div>
  );
}

/** A message keeps its element when it gets the identifier that it is stored under. */
const keys = new WeakMap<object, number>();
let nextKey = 0;
function keyOf(message: object): number {
  let key = keys.get(message);
  if (key === undefined) keys.set(message, (key = nextKey++));
  return key;
}

function Welcome({ isLoaded }: { isLoaded: boolean }) {
  if (!isLoaded) return null;
  return (
    <div class="welcome">
      <p class="greeting">What would you like to know?</p>
      <p>
        The answer goes on when this page is closed, when the connection breaks, and when the machine
        that writes it fails. Open the page again, and it is here.
      </p>
    </div>
  );
}
