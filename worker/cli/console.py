"""How the producer's commands print: results on standard output, everything else on standard error.

Knows nothing of requests or Redis, so that every other command starts without them.
"""

import sys
from typing import NoReturn

import msgspec
import typer

from worker.cli.monitor import EXIT_ERROR
from worker.core.reply import Reply


class Console:
    """What a command prints. Results go to standard output, everything else to standard error."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines

    def reply(self, reply: Reply) -> None:
        """One JSON line, when those are wanted."""
        if self._json_lines:
            sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
            sys.stdout.buffer.flush()

    def lines(self, lines: list[str]) -> None:
        """Text lines, unless JSON is wanted."""
        if not self._json_lines:
            for line in lines:
                typer.echo(line)

    @staticmethod
    def is_terminal() -> bool:
        """Whether somebody can be asked."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @staticmethod
    def ask(question: str) -> str:
        """A line typed by the user, without white space around, in lower case.

        Raises:
            EOFError: there is nobody.
        """
        typer.echo(question, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip().lower()

    def log(self, part: bytes, stream: str) -> None:
        """What a task wrote; beside the results where those are JSON."""
        target = sys.stdout if stream == "stdout" and not self._json_lines else sys.stderr
        target.flush()
        target.buffer.write(part)
        target.buffer.flush()

    @staticmethod
    def notice(text: str) -> None:
        """A line for the user beside the results."""
        typer.echo(text, err=True)

    @staticmethod
    def fail(text: str, code: int = EXIT_ERROR) -> NoReturn:
        """Tell what went wrong and end."""
        typer.echo(text, err=True)
        raise typer.Exit(code)
