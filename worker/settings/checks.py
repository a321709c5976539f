"""What several settings must agree on, and why.

Knows nothing of how they are read. A check is left out when one of its settings is faulty by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from worker.core.keys import Keys
from worker.settings.model import SELF_FENCE_SECONDS, Settings


@dataclass(frozen=True, slots=True)
class Check:
    """One agreement. `fault` gives what is wrong and what to do, to be read after the first name."""

    names: tuple[str, ...]
    fault: Callable[[Settings], str | None]


def _token_tells_streams_apart(settings: Settings) -> str | None:
    if len(settings.streams) > 1 and "{stream}" not in settings.token_template:
        return (
            "lacks {stream} although WORKER_STREAMS names several: two streams can hold the same entry ID, "
            "and Nomad would drop the second message as a repeat. Use {stream}:{message_id}"
        )
    return None


def _one_slot(settings: Settings) -> str | None:
    scheme = settings.redis_url.get_secret_value().partition("://")[0]
    if "cluster" in scheme and not Keys(settings.prefix).one_slot:
        return (
            "must hold exactly one hash tag with Redis Cluster, so that one script may touch all keys. "
            "Write it in braces, such as {dispatch}"
        )
    return None


def _one_token(settings: Settings) -> str | None:
    if settings.nomad_token and settings.nomad_token_file:
        return "is given, and NOMAD_TOKEN_FILE too: which one counts would be a guess. Unset one"
    return None


def _userinfo(settings: Settings) -> tuple[str, str]:
    """User and password in `REDIS_URL`."""
    userinfo = settings.redis_url.get_secret_value().partition("://")[2].rpartition("@")[0]
    user, _, password = userinfo.partition(":")
    return user, password


def _one_user(settings: Settings) -> str | None:
    if settings.redis_username and _userinfo(settings)[0]:
        return "is given, and a user in REDIS_URL too. Unset one"
    return None


def _one_password(settings: Settings) -> str | None:
    if settings.redis_password_file and _userinfo(settings)[1]:
        return "is given, and a password in REDIS_URL too. Unset one"
    return None


def _nomad_pair(settings: Settings) -> str | None:
    if bool(settings.nomad_client_cert) != bool(settings.nomad_client_key):
        return "and NOMAD_CLIENT_KEY belong together. Set both or none"
    return None


def _redis_pair(settings: Settings) -> str | None:
    if bool(settings.redis_cert_file) != bool(settings.redis_key_file):
        return "and REDIS_KEY_FILE belong together. Set both or none"
    return None


def _redis_tls(settings: Settings) -> str | None:
    encrypted = settings.redis_url.get_secret_value().startswith("rediss")
    if settings.redis_ca_file and not encrypted:
        return "is given, but REDIS_URL asks for no TLS. Begin the URL with rediss://, or unset the file"
    return None


def _timeout_in_lease(settings: Settings) -> str | None:
    most = settings.lease_seconds - SELF_FENCE_SECONDS
    if settings.nomad_timeout_seconds >= most:
        return (
            f"must be below {most:g} (WORKER_LEASE_SECONDS less {SELF_FENCE_SECONDS:g}): a dispatch must end "
            "while the lease still holds. Shorten it, or lengthen the lease"
        )
    return None


def _read_in_lease(settings: Settings) -> str | None:
    if settings.block_seconds >= settings.beat_seconds:
        return f"must be below a third of WORKER_LEASE_SECONDS ({settings.beat_seconds:g}). Shorten it"
    return None


def _drain_outlasts_dispatch(settings: Settings) -> str | None:
    least = settings.nomad_timeout_seconds + settings.block_seconds
    if settings.drain_seconds <= least:
        return (
            f"must be above {least:g} (WORKER_NOMAD_TIMEOUT_SECONDS and WORKER_BLOCK_SECONDS): shutdown "
            "finishes the dispatches and the read on their way. Lengthen it"
        )
    return None


def _stall_outlasts_lease(settings: Settings) -> str | None:
    if settings.stall_seconds <= settings.lease_seconds:
        return (
            f"must be above WORKER_LEASE_SECONDS ({settings.lease_seconds:g}): one slow answer must not "
            "count as a stall. Lengthen it"
        )
    return None


CHECKS = (
    Check(("WORKER_TOKEN_TEMPLATE", "WORKER_STREAMS"), _token_tells_streams_apart),
    Check(("WORKER_PREFIX", "REDIS_URL"), _one_slot),
    Check(("NOMAD_TOKEN", "NOMAD_TOKEN_FILE"), _one_token),
    Check(("REDIS_USERNAME", "REDIS_URL"), _one_user),
    Check(("REDIS_PASSWORD_FILE", "REDIS_URL"), _one_password),
    Check(("NOMAD_CLIENT_CERT", "NOMAD_CLIENT_KEY"), _nomad_pair),
    Check(("REDIS_CERT_FILE", "REDIS_KEY_FILE"), _redis_pair),
    Check(("REDIS_CA_FILE", "REDIS_URL"), _redis_tls),
    Check(("WORKER_NOMAD_TIMEOUT_SECONDS", "WORKER_LEASE_SECONDS"), _timeout_in_lease),
    Check(("WORKER_BLOCK_SECONDS", "WORKER_LEASE_SECONDS"), _read_in_lease),
    Check(
        ("WORKER_DRAIN_SECONDS", "WORKER_NOMAD_TIMEOUT_SECONDS", "WORKER_BLOCK_SECONDS"),
        _drain_outlasts_dispatch,
    ),
    Check(("WORKER_STALL_SECONDS", "WORKER_LEASE_SECONDS"), _stall_outlasts_lease),
)
