"""How the producer's commands read options and print: as Nomad's own command does.

Knows nothing of requests or Redis, so that every other command starts without them.
"""

import sys
from typing import Any, NoReturn

import msgspec
import typer
from typer.core import TyperCommand

from worker.cli.monitor import EXIT_ERROR
from worker.core.reply import Reply

FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_USAGE_EXIT_CODE = 2


class NomadCommand(TyperCommand):
    """A command whose options read as those of Nomad's: `-flag=true`, and 1 for a wrong usage.

    2 is what Nomad's command answers for a job that could not be placed.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        flags = {name for option in self.params if getattr(option, "is_flag", False) for name in option.opts}
        try:
            return super().parse_args(ctx, [word for arg in args for word in _plain_flag(arg, flags)])
        except Exception as error:
            if getattr(error, "exit_code", None) == _USAGE_EXIT_CODE:
                error.exit_code = EXIT_ERROR  # type: ignore[attr-defined]
            raise


def _plain_flag(arg: str, flags: set[str]) -> list[str]:
    """`-flag=true` as `-flag`, `-flag=false` as nothing, anything else as it is."""
    name, equals, value = arg.partition("=")
    if not equals or name not in flags:
        return [arg]
    return [] if value in FALSE else [name]


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
