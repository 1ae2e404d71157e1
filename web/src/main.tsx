/** The page: a list of sessions, a conversation, and the field for the next question. */

import { effect } from "@preact/signals";
import { render } from "preact";
import * as api from "./api";
import { Composer } from "./composer";
import { Dialogs, knowsModels, openDialog, readModels } from "./dialogs";
import { Icon } from "./icons";
import { Log } from "./log";
import { warmUp } from "./markdown";
import * as sessions from "./sessions";
import { isOpen, Sidebar } from "./sidebar";

function Page() {
  const conversation = sessions.conversation.value;
  const title = sessions.titleOf(conversation.id) || "New conversation";
  const { kind } = conversation.link.state.value;
  return (
    <>
      <a class="skip" href="#question" onClick={skip}>
        To the message field
      </a>
      <Sidebar />
      {isOpen.value && <div class="shade" onClick={() => (isOpen.value = false)} />}
      <main class="conversation" inert={isOpen.value}>
        <header>
          <button
            type="button"
            id="menu"
            class="quiet only-narrow"
            aria-expanded={isOpen.value}
            aria-controls="sessions"
            onClick={() => (isOpen.value = !isOpen.value)}
          >
            <Icon name="menu" />
            <span class="hidden">Conversations</span>
          </button>
          <h1 dir="auto">{title}</h1>
          <span class={`light ${kind}`} title={kind === "open" ? "Connected" : "Not connected"} />
        </header>
        <Log conversation={conversation} />
        <Composer conversation={conversation} />
      </main>
      <Dialogs />
    </>
  );
}

/** The address names the session, so a link cannot name an element of the page. */
function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("question")?.focus();
}

sessions.follow();

effect(() => {
  const title = sessions.titleOf(sessions.current.value);
  document.title = title ? `${title} – jarvis` : "jarvis";
});

// Where the service requires a sign-in, the page asks for it at once, and once.
let hasAsked = false;
effect(() => {
  const state = sessions.conversation.value.link.state.value;
  if (state.kind === "signed-out" && !hasAsked) {
    hasAsked = true;
    openDialog("account");
  }
  if (state.kind === "open") hasAsked = false;
});

sessions.refresh().catch((error: unknown) => {
  // A token of an earlier visit that is not good any more: the socket says so, too.
  if (error instanceof api.ApiError && error.status === 401) openDialog("account");
});

// The model that will answer is in sight. Where a sign-in is required, it is known after that.
effect(() => {
  if (sessions.conversation.value.link.state.value.kind === "open" && !knowsModels()) void readModels();
});

render(<Page />, document.getElementById("page")!);
warmUp();
