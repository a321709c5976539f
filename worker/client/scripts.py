"""The producer's Lua scripts: by digest, and in full to a server that does not know them.

Knows nothing of what they do. Each is one atomic step that is safe to repeat.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

Word = str | bytes | int
Command = tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """One script's text and SHA-1 digest."""

    source: str
    digest: str

    @classmethod
    def load(cls, name: str) -> "Script":
        """Read `<name>.lua` from this package."""
        source = (files("worker.client") / f"{name}.lua").read_text()
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    def command(self, keys: Sequence[str], args: Sequence[Word], *, whole: bool) -> Command:
        """The call; `whole` sends the text along."""
        head = ("EVAL", self.source) if whole else ("EVALSHA", self.digest)
        return (*head, len(keys), *keys, *args)
