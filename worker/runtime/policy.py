"""The policy file of a running worker: read at start, read again when its content changes.

Decides only which policy is in force: a file with a fault never replaces a good one. What a policy means is
`core.policy`'s.
"""

import asyncio
import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import structlog

from worker.core.policy import Policy
from worker.errors import SettingsInvalid

log = structlog.get_logger()

CHECK_SECONDS = 5.0
"""Between two looks at the file. Its content is compared, not its time stamp: a ConfigMap is changed by
swapping a symbolic link, and some file systems tell times in whole seconds."""
MOST_BYTES = 1_048_576
"""A ConfigMap holds no more."""


def load_policy(path: Path | None) -> Policy:
    """The policy of a file; without a file everything is allowed.

    Raises:
        SettingsInvalid: it cannot be read or is not valid; the message has one line per fault.
    """
    return Policy() if path is None else parse_policy(read_content(path))


def parse_policy(content: bytes) -> Policy:
    """The policy of a file's content.

    Raises:
        SettingsInvalid: it is no TOML, or not valid; the message has one line per fault.
    """
    try:
        tables = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        message = f"the policy is no TOML file: {error}"
        raise SettingsInvalid(message) from error
    return Policy.parse(tables)


def read_content(path: Path) -> bytes:
    """A policy file's bytes.

    Raises:
        SettingsInvalid: it cannot be read, or is too large to be one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        message = f"the policy cannot be read: {error}"
        raise SettingsInvalid(message) from error
    if len(content) > MOST_BYTES:
        message = f"the policy has more than {MOST_BYTES} bytes"
        raise SettingsInvalid(message)
    return content


class PolicyFile:
    """The policy in force. Whoever asks it does so anew for every message: it may be another one by then.

    Args:
        path: `WORKER_ALLOW_FILE`; None: there is no policy.
        told: after every look that changes it, why the file is not in force; empty: it is.

    Raises:
        SettingsInvalid: the file is not valid at start, when there is no older policy to keep.
    """

    def __init__(self, path: Path | None, told: Callable[[str], None] = lambda _fault: None) -> None:
        self._path = path
        self._told = told
        self._seen = b"" if path is None else read_content(path)
        self.policy = Policy() if path is None else parse_policy(self._seen)
        self.fault = ""
        """Why the file as it is now is not in force; empty: it is."""
        told(self.fault)

    @property
    def version(self) -> str:
        """Beginning of the SHA-256 of the content in force, as `sha256sum` prints it; empty: no file."""
        return hashlib.sha256(self._seen).hexdigest()[:12] if self._path else ""

    async def run(self) -> None:
        """Look at the file every few seconds, for ever."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.look()

    async def look(self) -> bool:
        """Take the file's content as the policy, if it changed and is valid. Returns whether it did."""
        if self._path is None:
            return False
        try:
            # In a thread: the file may lie on a file system that hangs.
            content = await asyncio.to_thread(read_content, self._path)
            if content == self._seen and not self.fault:
                return False
            policy = parse_policy(content)
        except SettingsInvalid as error:
            self._keep_old(error)
            return False
        changed = content != self._seen
        self._seen, self.fault = content, ""
        self._told(self.fault)
        if changed:
            self.policy = policy
        log.info("policy.loaded", file=str(self._path), version=self.version)
        return changed

    def _keep_old(self, error: SettingsInvalid) -> None:
        if str(error) == self.fault:
            return
        self.fault = str(error)
        self._told(self.fault)
        log.error("policy.kept", file=str(self._path), code=error.code, error=self.fault)
