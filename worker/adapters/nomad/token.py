"""Keeps the ACL token current: given once, or read from a file that something else renews.

Knows nothing of HTTP or of what the token may do, and never shows it.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from worker.errors import SettingsInvalid

LOOK_SECONDS = 1.0
"""How often the file is looked at. A renewed token is used at the latest this long after it was written."""

_LOG = structlog.get_logger(__name__)
_MASK = "***"


class TokenSource:
    """The ACL token to send now; empty: anonymous.

    Looking at the file blocks the event loop for one `stat`, and for a read of some bytes after a change.

    Args:
        token: used when there is no file.
        file: holds the token alone; white space around it is ignored.
        monotonic: seconds that never go back.
        on_secret: told of every token read from the file, so that logs can mask it.

    Raises:
        SettingsInvalid: the file cannot be read, or what it holds cannot be a token.
    """

    def __init__(
        self,
        token: str = "",
        file: Path | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_secret: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._token = token.strip()
        self._file = file
        self._monotonic = monotonic
        self._on_secret = on_secret
        self._seen: tuple[int, int, int] | None = None
        self._look_at = 0.0
        if file is not None:
            try:
                self._seen, self._token = _read(file)
            except (OSError, ValueError) as error:
                message = f"NOMAD_TOKEN_FILE {file}: {_why(error)}"
                raise SettingsInvalid(message) from None
            self._look_at = monotonic() + LOOK_SECONDS
            on_secret(self._token)
        elif not _sendable(self._token):
            message = "NOMAD_TOKEN holds characters that no HTTP header can carry"
            raise SettingsInvalid(message)

    def __repr__(self) -> str:
        return f"TokenSource(file={self._file!s}, token={_MASK if self._token else 'none'})"

    def current(self) -> str:
        """The token; after the file changed, the new one. A file that has gone leaves the last one in use."""
        if self._file is not None and self._monotonic() >= self._look_at:
            self._look_at = self._monotonic() + LOOK_SECONDS
            try:
                if _identity(self._file) != self._seen:
                    self._seen, self._token = _read(self._file)
                    self._on_secret(self._token)
                    _LOG.info("nomad.token_read", file=str(self._file))
            except (OSError, ValueError) as error:
                _LOG.warning("nomad.token_unreadable", file=str(self._file), why=_why(error))
        return self._token

    def refused(self) -> None:
        """Nomad did not accept the token: read the file again before the next request, changed or not."""
        self._look_at = 0.0
        self._seen = None

    def mask(self, text: str) -> str:
        """The text without the token in it."""
        return text.replace(self._token, _MASK) if self._token else text


def _identity(file: Path) -> tuple[int, int, int]:
    status = os.stat(file)  # noqa: PTH116 - a third of pathlib's time, on every look
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(file: Path) -> tuple[tuple[int, int, int], str]:
    seen = _identity(file)
    token = file.read_text(encoding="ascii").strip()
    if not token or not _sendable(token):
        message = "holds no token"
        raise ValueError(message)
    return seen, token


def _sendable(token: str) -> bool:
    return token.isascii() and token.isprintable()


def _why(error: OSError | ValueError) -> str:
    """The reason without any byte of the file: a decoding error's own text would show some."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "holds no token"
