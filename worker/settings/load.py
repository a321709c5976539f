"""Reads the environment into `Settings`, or tells everything that is wrong with it in one go.

Knows nothing of what each variable means: that is in `model`, `values` and `checks`.
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from worker.core.redact import MASK, without_userinfo
from worker.errors import SettingsInvalid
from worker.settings.checks import CHECKS
from worker.settings.model import Settings
from worker.settings.reference import environment_name, form_of, written

_SHOWN_LENGTH = 60
_SECRET_FILES = frozenset({"NOMAD_TOKEN_FILE", "REDIS_PASSWORD_FILE"})
"""Not shown when faulty: what is in them may be the secret itself, put into the wrong variable."""

# Kubernetes sets these in every container for a Service called `worker`; nobody mistyped them.
_SERVICE_LINK = re.compile(
    r"WORKER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def load(overrides: Mapping[str, str] | None = None) -> Settings:
    """Read and check all settings.

    Args:
        overrides: values by environment name that win over the environment; `""` unsets.

    Raises:
        SettingsInvalid: one line for each problem: the variable, its fault, and what to do.
    """
    given: dict[str, Any] = dict(overrides or {})
    problems = _unknown_names({*os.environ, *given})
    faulty: set[str] = set()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = str(fault["loc"][0])
            if name not in faulty:
                faulty.add(name)
                problems.append(_problem(name, str(fault["msg"]), fault["type"], str(fault.get("input"))))
        # What the sound ones disagree on is told too: the faulty ones count as unset for that.
        settings = Settings(**given | dict.fromkeys(faulty, ""))
    for check in CHECKS:
        if faulty.isdisjoint(check.names):
            problems += [f"{check.names[0]} {fault}." for fault in [check.fault(settings)] if fault]
    if problems:
        raise SettingsInvalid("\n".join(sorted(problems)))
    return settings


def _problem(name: str, message: str, kind: str, text: str) -> str:
    field = _fields()[name]
    hidden = field.annotation in {SecretStr, SecretStr | None} or name in _SECRET_FILES
    shown = "" if hidden else f"={_masked(text)!r}"
    if kind == "value_error":
        fault = message.removeprefix("Value error, ")
    else:
        fault = f"is not accepted. Give {form_of(field)} (default: {written(field.get_default()) or 'unset'})"
    return f"{name}{shown} {fault}."


def _masked(text: str) -> str:
    masked = without_userinfo(text)
    if "://" not in masked and "@" in masked:
        # An address whose scheme was forgotten still holds its password.
        masked = f"{MASK}@{masked.rpartition('@')[2]}"
    return masked if len(masked) <= _SHOWN_LENGTH else f"{masked[:_SHOWN_LENGTH]}..."


def _unknown_names(names: set[str]) -> list[str]:
    known = _fields().keys()
    problems = []
    for name in names - known:
        # Others' variables begin with NOMAD_ and REDIS_ too (Nomad sets dozens in its tasks).
        if name.startswith("WORKER_") and not _SERVICE_LINK.fullmatch(name):
            near = get_close_matches(name, known, n=1, cutoff=0.7)
            hint = (
                f"Did you mean {near[0]}?"
                if near
                else "Remove it; `dispatch-worker config` lists all there are."
            )
            problems.append(f"{name} is no setting of this worker. {hint}")
    return problems


def _fields() -> dict[str, FieldInfo]:
    return {environment_name(field): field for field in Settings.model_fields.values()}
