"""The AsyncAPI document of the worker: which streams there are, and which entries stand in them.

Describes only; the entries' fields are in `schema`.
"""

import inspect
from typing import Any

import msgspec

from worker.core.schema import DeadLetterEntry, ReplyEntry, RequestEntry

VERSION = "3.0.0"
DEFAULT_PREFIX = "{dispatch}"

_ENTRY = (
    "An entry of a Redis stream: flat fields of bytes, shown here as a JSON object of strings. "
    "Text is UTF-8; `payload` is raw bytes in the stream and base64 in JSON only."
)


def asyncapi() -> dict[str, Any]:
    """The document, as JSON. The application it describes is the worker: it receives requests."""
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Nomad dispatch worker",
            "version": "1",
            "description": (
                "Requests to dispatch Nomad parameterized jobs, replies about what became of them, and dead "
                "letters. Every message gets exactly one final reply (`final` is `1`). Consumers dedupe "
                "replies on (`stream`, `id`, `seq`), finals on (`stream`, `id`)."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "localhost:6379",
                "protocol": "redis",
                "description": "Redis 6.2 or newer. A message is an entry of a stream (XADD, XREAD).",
            }
        },
        "channels": {
            "requests": _channel(
                "{prefix}:{stream}",
                "One of the workers' `WORKER_STREAMS`. Never trim it, and never delete entries.",
                "request",
                stream={"default": "requests", "description": "Short name of the stream."},
            ),
            "replies": _channel("{prefix}:replies", "Replies to requests without `reply_to`.", "reply"),
            "namedReplies": _channel(
                "{prefix}:replies:{name}",
                "Replies to requests that name it in `reply_to`.",
                "reply",
                name={"description": "Letters, digits, `_` `.` `-`; 64 at most."},
            ),
            "deadLetters": _channel("{prefix}:dead", "Requests that a person has to look at.", "deadLetter"),
        },
        "operations": {
            "receiveRequest": {
                "action": "receive",
                "channel": _ref("channels/requests"),
                "messages": [_ref("channels/requests/messages/request")],
                "reply": {
                    "channel": _ref("channels/replies"),
                    "messages": [_ref("channels/replies/messages/reply")],
                },
            },
            "sendReply": _send("replies", "reply"),
            "sendNamedReply": _send("namedReplies", "reply"),
            "sendDeadLetter": _send("deadLetters", "deadLetter"),
        },
        "components": {
            "messages": {
                "request": {
                    **_message(RequestEntry, "A request to dispatch a job"),
                    "correlationId": {"location": "$message.payload#/correlation_id"},
                },
                "reply": {
                    **_message(ReplyEntry, "What became of a request so far"),
                    "correlationId": {"location": "$message.payload#/correlation_id"},
                },
                "deadLetter": _message(DeadLetterEntry, "A request that died, and why"),
            },
            "schemas": _schemas(),
        },
    }


def _channel(address: str, description: str, message: str, **parameters: Any) -> dict[str, Any]:
    prefix = {
        "default": DEFAULT_PREFIX,
        "description": "The workers' `WORKER_PREFIX`; its braces are a hash tag for Redis Cluster.",
    }
    return {
        "address": address,
        "description": description,
        "messages": {message: _ref(f"components/messages/{message}")},
        "parameters": {"prefix": prefix, **parameters},
    }


def _send(channel: str, message: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": _ref(f"channels/{channel}"),
        "messages": [_ref(f"channels/{channel}/messages/{message}")],
    }


def _message(kind: type[msgspec.Struct], title: str) -> dict[str, Any]:
    description = f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{_ENTRY}"
    payload = _ref(f"components/schemas/{kind.__name__}")
    return {"title": title, "description": description, "payload": payload}


def _schemas() -> dict[str, Any]:
    kinds = [RequestEntry, ReplyEntry, DeadLetterEntry]
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {name: components[name] for name in sorted(components)}


def _ref(path: str) -> dict[str, str]:
    return {"$ref": f"#/{path}"}
