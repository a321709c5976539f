"""Renders what can be done about a message: a form where actions are set up, else the commands.

Decides nothing. Every form asks for the token: the page remembers nothing that another site could use.
"""

from worker.adapters.redis.lookback import DeadLetter
from worker.core.model import MessageKey
from worker.runtime.statuspage.actions import Deed
from worker.runtime.statuspage.frame import mono, note
from worker.runtime.statuspage.html import Markup, join, tag


def form(key: MessageKey, letter: DeadLetter | None, *, cancel: bool) -> Markup:
    """The token, and a button per action. The Enter key does what the first one says."""
    token = f"token-{key.stream}"
    hidden = [tag("input", type="hidden", name="id", value=str(key))]
    buttons = []
    if letter is not None:
        hidden.append(tag("input", type="hidden", name="letter", value=letter.id))
        buttons += [_button(Deed.REQUEUE, "Requeue as a new request")]
    if cancel:
        buttons.append(_button(Deed.CANCEL, "Cancel", kind="bad"))
    if letter is not None:
        sure = tag("input", type="checkbox", name="sure", value="yes")
        buttons.append(_button(Deed.DROP, "Drop", kind="bad"))
        buttons.append(tag("label", sure, "Yes, drop it for good", class_="sure"))
    return tag(
        "form",
        hidden,
        tag("label", "Your name", for_=f"by-{key.stream}"),
        tag(
            "input",
            id=f"by-{key.stream}",
            name="by",
            maxlength=80,
            autocomplete="username",
            placeholder="for the log",
        ),
        tag("label", "Token", for_=token),
        tag("input", id=token, name="token", type="password", required=True, autocomplete="current-password"),
        buttons,
        action="/status",
        method="post",
        class_="act",
    )


def _button(deed: Deed, text: str, *, kind: str = "") -> Markup:
    return tag("button", text, type="submit", name="action", value=deed.value, class_=kind or None)


def commands(key: MessageKey, letter: DeadLetter | None, *, cancel: bool) -> Markup:
    """The same as commands, for a page that is read-only."""
    lines = [f"dispatch-worker cancel {key}"] if cancel else []
    if letter is not None:
        lines += [f"dispatch-worker dlq requeue {letter.id}", f"dispatch-worker dlq drop {letter.id}"]
    text = "This page is read-only. In a shell with the worker's settings:"
    return join(
        (note(text), tag("pre", mono("\n".join(lines)), tabindex=0, role="region", aria_label="Commands"))
    )
