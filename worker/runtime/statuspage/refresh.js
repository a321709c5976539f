// Asks for the page again every few seconds and puts in what changed. The focus, the scrolling and a selection
// stay where they are; without this script the page is the same, and a person reloads it.
(() => {
  "use strict";
  const EVERY_MS = 5000;
  const GIVE_UP_MS = 10000;
  const pause = document.getElementById("pause");
  const stale = document.getElementById("stale");
  let timer = 0;
  // Counts the questions and the pauses: what is answered after the next of either is no longer wanted.
  let turn = 0;

  const later = () => {
    clearTimeout(timer);
    if (pause.getAttribute("aria-pressed") === "false") timer = setTimeout(refresh, EVERY_MS);
  };

  const refresh = async () => {
    // Nobody looks, or somebody is about to copy something.
    if (document.hidden || getSelection().toString() !== "") return later();
    const mine = ++turn;
    try {
      const answer = await fetch(location.href, {
        headers: { Accept: "text/html" },
        signal: AbortSignal.timeout(GIVE_UP_MS),
      });
      if (!answer.ok) throw new Error(String(answer.status));
      const text = await answer.text();
      if (mine !== turn) return;
      const fresh = new DOMParser().parseFromString(text, "text/html");
      document.querySelectorAll("[data-live]").forEach((old) => put(old, fresh.getElementById(old.id)));
      stale.hidden = true;
    } catch {
      if (mine !== turn) return;
      stale.hidden = false;
    }
    later();
  };

  const put = (old, fresh) => {
    if (fresh === null || old.innerHTML === fresh.innerHTML) return;
    const focused = old.contains(document.activeElement) ? nameOf(document.activeElement) : "";
    const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    old.replaceChildren(...fresh.childNodes);
    old.querySelectorAll(".scroll").forEach((one, at) => (one.scrollLeft = scrolled[at] ?? 0));
    if (focused !== "") {
      [...old.querySelectorAll("a, [tabindex]")].find((one) => nameOf(one) === focused)?.focus({ preventScroll: true });
    }
  };

  const nameOf = (one) => one.getAttribute("href") ?? one.getAttribute("aria-label") ?? "";

  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = pause.getAttribute("aria-pressed") === "false";
    pause.setAttribute("aria-pressed", String(paused));
    if (!paused) return refresh();
    turn += 1;
    clearTimeout(timer);
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && pause.getAttribute("aria-pressed") === "false") refresh();
  });
  later();
})();
