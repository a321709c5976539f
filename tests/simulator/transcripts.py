"""The recorded exchanges with a real Nomad, and how an answer of the simulator is compared with them."""

import asyncio
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

FOLDER = Path(__file__).parents[1] / "data" / "nomad-transcripts"
COMPARED_HEADERS = ("Content-Type", "X-Nomad-Index", "X-Nomad-Knownleader", "X-Nomad-Lastcontact")
UNORDERED = re.compile(r"\[([^\]]*)\]$")


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def exchanges(name: str) -> Iterator[dict[str, Any]]:
    """The request/answer pairs of a transcript, without its other observations."""
    for entry in load(name)["exchanges"]:
        if "request" in entry and "status" in entry.get("response", {}):
            yield entry


def exchange(name: str, note: str) -> dict[str, Any]:
    return next(entry for entry in exchanges(name) if entry["note"].startswith(note))


def words(text: str) -> str:
    """An error text; Nomad lists meta keys in random order, so here they are sorted."""
    return UNORDERED.sub(lambda match: f"[{' '.join(sorted(match[1].split()))}]", text)


def differences(recorded: Any, given: Any, path: str = "") -> list[str]:
    """Where the shape of an answer differs: keys and types. Null stands for any type, on either side."""
    if recorded is None or given is None or path.endswith((".Config", ".Meta", ".ClassEligibility")):
        return []
    if isinstance(recorded, Mapping) and isinstance(given, Mapping):
        trimmed = "_trimmed" in recorded or path.endswith(("TaskGroups[0]", "Tasks[0]"))
        wanted = recorded.keys() - {"_trimmed"}
        found = [f"{path}.{key} is missing" for key in sorted(wanted - given.keys())]
        if not trimmed:
            found += [f"{path}.{key} is extra" for key in sorted(given.keys() - wanted)]
        for key in sorted(wanted & given.keys()):
            found += differences(recorded[key], given[key], f"{path}.{key}")
        return found
    if isinstance(recorded, list) and isinstance(given, list):
        pairs = list(zip(recorded, given, strict=False))
        return [text for pair in pairs[:1] for text in differences(*pair, f"{path}[0]")]
    numbers = (int, float)
    same = (
        isinstance(recorded, bool) == isinstance(given, bool)
        and isinstance(recorded, str) == isinstance(given, str)
        and isinstance(recorded, numbers) == isinstance(given, numbers)
    )
    return [] if same else [f"{path} is {given!r}, recorded {recorded!r}"]


class Answer:
    """An answer of the simulator, read in full."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Caller:
    """Sends requests to a simulator with paths exactly as written."""

    def __init__(self, address: str, token: str = "") -> None:
        self._address = address
        self._headers = {"X-Nomad-Token": token} if token else {}
        self.session = aiohttp.ClientSession(skip_auto_headers=("Content-Type",))

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        data = None if raw is None else io.BytesIO(raw)
        url = URL(self._address + path, encoded=True)
        async with asyncio.timeout(15):
            async with self.session.request(
                method, url, data=data, headers=self._headers | headers, allow_redirects=False
            ) as response:
                return Answer(response.status, response.headers, await response.text())

    async def get(self, path: str, **headers: str) -> Any:
        answer = await self.send("GET", path, **headers)
        assert answer.status == 200, answer.text
        return answer.json

    async def dispatch(self, parent: str, token: str = "", **body: Any) -> dict[str, Any]:
        query = f"?idempotency_token={token}" if token else ""
        answer = await self.send("POST", f"/v1/job/{parent}/dispatch{query}", body)
        assert answer.status == 200, answer.text
        found: dict[str, Any] = answer.json
        return found

    async def close(self) -> None:
        await self.session.close()


def assert_like(entry: Mapping[str, Any], answer: Answer) -> None:
    """The answer has the recorded status, text or JSON shape, and headers."""
    recorded = entry["response"]
    note = entry["note"]
    assert answer.status == recorded["status"], (note, answer.text)
    for header in COMPARED_HEADERS:
        if header in recorded["headers"]:
            assert header in answer.headers, (note, header)
    if "Content-Type" in recorded["headers"]:
        assert answer.headers["Content-Type"] == recorded["headers"]["Content-Type"], note
    if "json" in recorded:
        found = differences(recorded["json"], answer.json)
        assert not found, (note, found)
    elif recorded["headers"].get("Content-Type", "").startswith("text/plain"):
        assert words(answer.text) == words(recorded["body_raw"]), note
