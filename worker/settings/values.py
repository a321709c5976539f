"""The forms a setting's text may have, and what each is read as.

Knows nothing of which setting has which form. A fault never repeats the text: it may hold a secret.
"""

import os
import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
OWN_KEYS = frozenset(
    {
        *("replies", "dead", "message", "worker", "workers", "floor", "cap", "cancels", "control"),
        *("idempotency", "payload", "delayed", "queue", "flows", "turns", "served", "deadlines", "rates"),
    }
)
"""What follows the prefix in the worker's own keys (`core.keys`): no stream may be called so."""

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
"""As Nomad's own CLI reads `NOMAD_SKIP_VERIFY`; every other flag is read alike."""

REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
MAX_WEIGHT = 100
MAX_PORT = 65_535
MAX_PREFIX_LENGTH = 64


class WeightedStream(NamedTuple):
    """A request stream and its share of the reads while several have entries waiting."""

    name: str
    weight: int


class Listen(NamedTuple):
    """An address to listen on. An empty host: every interface; port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written: `:9464`, `127.0.0.1:9464`, `[::1]:9464`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _flag(value: Any) -> Any:
    if value in TRUE or value is True:
        return True
    if value in FALSE or value is False:
        return False
    message = "is neither true nor false. Give true or false"
    raise ValueError(message)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        message = "is no name. Use letters, digits, _ . - (128 at most), beginning with a letter or digit"
        raise ValueError(message)
    return text


def _names(value: Any) -> Any:
    """`a, b` as a tuple in the order given."""
    if not isinstance(value, str):
        return value
    names = tuple(part.strip() for part in value.split(","))
    faulty = next((name for name in names if not NAME.fullmatch(name)), None)
    if faulty is not None or len(set(names)) < len(names):
        message = "is not a list of different names. Separate them with commas: first,second"
        raise ValueError(message)
    return names


def _streams(value: Any) -> Any:
    """`high:6,normal:3,low` as names with weights; a name without one weighs 1."""
    if not isinstance(value, str):
        return value
    streams = []
    for part in value.split(","):
        name, colon, weight = part.strip().partition(":")
        if not NAME.fullmatch(name):
            message = "holds what is no stream name. Write name:weight,name:weight, such as high:6,low:1"
            raise ValueError(message)
        if name in OWN_KEYS:
            message = f"names a stream {name!r}, which is a key of the worker's own. Choose another name"
            raise ValueError(message)
        if colon and not (weight.isascii() and weight.isdigit() and 1 <= int(weight) <= MAX_WEIGHT):
            message = f"gives {name!r} no usable weight. Give a whole number from 1 to {MAX_WEIGHT}"
            raise ValueError(message)
        streams.append(WeightedStream(name, int(weight) if colon else 1))
    if len({stream.name for stream in streams}) < len(streams):
        message = "names a stream twice. Name each once"
        raise ValueError(message)
    return tuple(streams)


def _listen(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    if (
        not colon
        or not (port.isascii() and port.isdigit())
        or int(port) > MAX_PORT
        or bracketed != (":" in bare)
    ):
        message = "is not an address to listen on. Give host:port or :port, such as :9464 or 127.0.0.1:9464"
        raise ValueError(message)
    return Listen(bare, int(port))


def _readable_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        message = "is not a file here. Give the path of an existing file, or leave the variable unset"
        raise ValueError(message)
    if path is not None and not os.access(path, os.R_OK):
        message = "may not be read by this process. Change its owner or mode"
        raise ValueError(message)
    return path


def _readable_folder(path: Path | None) -> Path | None:
    if path is not None and not (path.is_dir() and os.access(path, os.R_OK | os.X_OK)):
        message = "is not a folder that can be read here. Give the path of a folder of CA certificates"
        raise ValueError(message)
    return path


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # parsed on access: out of range or not a number raises here
    except ValueError:
        message = "is not a URL. Check its host, port and brackets"
        raise ValueError(message) from None
    return parts


def _nomad_address(text: str) -> str:
    """An agent's address; a trailing slash is dropped."""
    parts = _split(text)
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            message = "holds no absolute path. Write unix:///path/to/api.sock"
            raise ValueError(message)
        return text
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "is no agent's address. Write http://host:4646, https://host:4646 or unix:///path/api.sock"
        raise ValueError(message)
    if parts.username is not None or parts.query or parts.fragment:
        message = "holds more than scheme, host, port and path. Leave out user, query and fragment"
        raise ValueError(message)
    return text.rstrip("/")


def _redis_url(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    scheme, _, rest = text.partition("://")
    if scheme not in REDIS_SCHEMES:
        message = f"has an unknown scheme. Begin it with one of {', '.join(f'{s}://' for s in REDIS_SCHEMES)}"
        raise ValueError(message)
    authority, slash, path = rest.rpartition("@")[2].partition("/")
    if scheme == "unix":
        if authority or not path:
            message = "holds no absolute path. Write unix:///path/to/redis.sock"
            raise ValueError(message)
        return secret
    # Sentinel and Cluster take several hosts, which no URL parser accepts: each is parsed alone.
    for host in authority.split(","):
        if not _split(f"redis://{host}").hostname:
            message = f"names no host. Write {scheme}://host:port"
            raise ValueError(message)
    if "sentinel" in scheme and not (slash and path.partition("/")[0].partition("?")[0]):
        message = f"names no service. Write {scheme}://host:26379,host2:26379/service/0"
        raise ValueError(message)
    return secret


def _ui_links(text: str) -> str:
    """`true`, `false`, or the base URL of the web interface."""
    if text in TRUE | FALSE:
        return "true" if text in TRUE else "false"
    parts = _split(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = (
            "is neither true, false nor an address. Give the web interface's, such as https://nomad.example"
        )
        raise ValueError(message)
    return text.rstrip("/")


def _prefix(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > MAX_PREFIX_LENGTH:
        message = f"is no key prefix. Use up to {MAX_PREFIX_LENGTH} printable ASCII characters without spaces"
        raise ValueError(message)
    return text


def _token_template(text: str) -> str:
    try:
        fields = {name for _, name, spec, conversion in Formatter().parse(text) if name is not None}
        plain = all(not spec and not conversion for _, _, spec, conversion in Formatter().parse(text))
    except ValueError:
        fields, plain = set(), False
    if not plain or not fields <= {"message_id", "stream"} or not text.isprintable():
        message = (
            "is no token template. Use text with {message_id} and {stream}, such as {stream}:{message_id}"
        )
        raise ValueError(message)
    if "message_id" not in fields:
        message = "lacks {message_id}: every message would get one token, and only the first a job. Add it"
        raise ValueError(message)
    return text


Flag = Annotated[bool, BeforeValidator(_flag)]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
Streams = Annotated[tuple[WeightedStream, ...], NoDecode, BeforeValidator(_streams)]
ListenAddress = Annotated[Listen, NoDecode, BeforeValidator(_listen)]
ReadableFile = Annotated[Path | None, AfterValidator(_readable_file)]
ReadableFolder = Annotated[Path | None, AfterValidator(_readable_folder)]
NomadAddress = Annotated[str, AfterValidator(_nomad_address)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
UiLinks = Annotated[str, AfterValidator(_ui_links)]
Prefix = Annotated[str, AfterValidator(_prefix)]
TokenTemplate = Annotated[str, AfterValidator(_token_template)]
