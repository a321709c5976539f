"""Words of a command line, read as Go reads them: a table made with the real command."""

import pytest

from worker.cli.goflags import FlagFault, Flags, Kind, read_flags

KINDS = {"meta": Kind.TEXT, "detach": Kind.SWITCH, "priority": Kind.INTEGER}


@pytest.mark.parametrize(
    ("line", "values", "arguments"),
    [
        ("", (), ()),
        ("job", (), ("job",)),
        ("-meta a=b=c job", (("meta", "a=b=c"),), ("job",)),
        ("--meta=a= job -", (("meta", "a="),), ("job", "-")),
        ("-meta a -meta b", (("meta", "a"), ("meta", "b")), ()),
        ("-meta -detach", (("meta", "-detach"),), ()),
        ("-detach job", (("detach", "true"),), ("job",)),
        ("-detach=T -detach=0 job", (), ("job",)),
        ("-detach=0 -detach job", (("detach", "true"),), ("job",)),
        ("-priority 0x10", (("priority", "16"),), ()),
        ("-priority=010", (("priority", "8"),), ()),
        ("-priority -1", (("priority", "-1"),), ()),
        ("-detach -- -meta", (("detach", "true"),), ("-meta",)),
        # Go would take this one for the input source.
        ("job -detach", (("detach", "true"),), ("job",)),
    ],
)
def test_words_are_read_as_go_reads_them(
    line: str, values: tuple[tuple[str, str], ...], arguments: tuple[str, ...]
) -> None:
    assert read_flags(line.split(), KINDS) == Flags(values, arguments)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("-nope job", "flag provided but not defined: -nope"),
        ("--nope=3 job", "flag provided but not defined: -nope"),
        ("-meta", "flag needs an argument: -meta"),
        ("-detach=x", 'invalid boolean value "x" for -detach: parse error'),
        ("-detach=", 'invalid boolean value "" for -detach: parse error'),
        ("-priority x", 'invalid value "x" for flag -priority: parse error'),
        ("-priority=", 'invalid value "" for flag -priority: parse error'),
        ("-priority 1_0", 'invalid value "1_0" for flag -priority: parse error'),
        (
            "-priority 99999999999999999999",
            'invalid value "99999999999999999999" for flag -priority: value out of range',
        ),
        ("--- x", "bad flag syntax: ---"),
        ("-=x a", "bad flag syntax: -=x"),
    ],
)
def test_a_fault_has_gos_words(line: str, fault: str) -> None:
    with pytest.raises(FlagFault) as caught:
        read_flags(line.split(), KINDS)

    assert str(caught.value) == fault
