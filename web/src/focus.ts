/** The focus of an element that goes: it would fall to the page, and a keyboard or a screen reader with
 * it. */

/** Keeps the focus in a log of articles: where the element that has it goes, the button of the same kind
 * in the article that stands there now gets it, or else that article. Returns how to end it. */
export function keepFocus(log: HTMLElement): () => void {
  let focused: HTMLElement | undefined;
  let place = 0;
  const onFocusIn = ({ target }: FocusEvent) => {
    if (!(target instanceof HTMLElement)) return;
    focused = target;
    const article = target.closest("article");
    place = [...log.querySelectorAll("article")].findIndex((other) => other === article);
  };
  const onFocusOut = () => {
    // A user who went elsewhere is left alone; an element that goes is gone a moment later.
    setTimeout(() => {
      if (focused?.isConnected && !focused.matches(":focus")) focused = undefined;
    });
  };
  const observer = new MutationObserver(() => {
    if (!focused || focused.isConnected) return;
    const { title } = focused;
    focused = undefined;
    if (document.activeElement && document.activeElement !== document.body) return;
    const articles = [...log.querySelectorAll<HTMLElement>("article")];
    const article = articles[Math.min(place, articles.length - 1)];
    if (!article) return document.getElementById("question")?.focus();
    const buttons = [...article.querySelectorAll<HTMLElement>("button")];
    const same = title ? buttons.find((button) => button.title === title) : undefined;
    if (!same) article.tabIndex = -1;
    (same ?? article).focus({ preventScroll: true });
  });
  log.addEventListener("focusin", onFocusIn);
  log.addEventListener("focusout", onFocusOut);
  observer.observe(log, { childList: true, subtree: true });
  return () => {
    log.removeEventListener("focusin", onFocusIn);
    log.removeEventListener("focusout", onFocusOut);
    observer.disconnect();
  };
}

/** Has the escape key end what is open, and nothing else: on the page it stops an answer. */
export function onEscape(end: () => void) {
  return (event: KeyboardEvent) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    end();
  };
}
