"""Commands that read their options as Nomad's do; one that explains itself as `nomad job dispatch` does.

Knows nothing of what the options mean.
"""

from collections import defaultdict
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from worker.cli.goflags import FlagFault, Flags, Kind, read_flags

EXIT_USAGE = 1
"""2 is what Nomad's command answers for a job that could not be placed."""
_CLICKS_EXIT_CODE = 2
USAGE = "[options] <parameterized job> [input source]"
HELP = ("h", "help")
INTEGERS = frozenset({"priority"})
"""Those that Go reads as whole numbers, `0x10` included."""


class GoCommand(TyperCommand):
    """One dash or two, `-flag=false`, values as Go reads them; 1 for a wrong usage."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        if ctx.resilient_parsing:  # for shell completion: the line is not finished
            return super().parse_args(ctx, args)
        options = self._options()
        kinds = {name: _kind(option) for name, option in options.items()}
        try:
            flags = read_flags(args, kinds | dict.fromkeys(HELP, Kind.SWITCH))
        except FlagFault as fault:
            self._refuse(ctx, str(fault))
        if any(name in HELP for name, _ in flags.values):
            typer.echo(self.get_help(ctx))
            ctx.exit(0)
        try:
            return super().parse_args(ctx, _as_click_reads(flags, options))
        except Exception as error:
            if getattr(error, "exit_code", None) == _CLICKS_EXIT_CODE:
                error.exit_code = EXIT_USAGE  # type: ignore[attr-defined]
            raise

    def _options(self) -> dict[str, Any]:
        """By name, without dashes."""
        return {one.opts[0].lstrip("-"): one for one in self.params if one.param_type_name == "option"}

    def _refuse(self, ctx: Any, text: str) -> NoReturn:
        typer.echo(self.get_help(ctx))
        typer.echo(text, err=True)
        raise typer.Exit(EXIT_USAGE)


class NomadCommand(GoCommand):
    """With the usage and the sections of Nomad's own command."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """See click."""
        formatter.write_usage(ctx.command_path, USAGE)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """See click. Each option once, with one dash, in the sections that the options name."""
        del ctx
        sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, option in self._options().items():
            metavar = "" if _kind(option) is Kind.SWITCH else f"=<{option.metavar or 'VALUE'}>".lower()
            sections[option.rich_help_panel].append((f"-{name}{metavar}", option.help))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        formatter.write_paragraph()
        formatter.write_text("Options may be written with one dash or with two.")


def _kind(option: Any) -> Kind:
    if getattr(option, "is_flag", False):
        return Kind.SWITCH
    return Kind.INTEGER if option.name in INTEGERS else Kind.TEXT


def _as_click_reads(flags: Flags, options: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in flags.values:
        option = options[name]
        words += [option.opts[0]] if _kind(option) is Kind.SWITCH else [option.opts[0], value]
    return [*words, "--", *flags.arguments]
