"""The contract in `docs/contract` is what the types say, and refers to nothing that is not there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.core.asyncapi import asyncapi
from worker.core.policy_file import policy_schema
from worker.core.schema import dead_letter_schema, reply_schema, request_schema
from worker.deadletter import OWN_FIELDS

FOLDER = Path(__file__).parents[2] / "docs" / "contract"
DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "request.schema.json": request_schema,
    "reply.schema.json": reply_schema,
    "dead-letter.schema.json": dead_letter_schema,
    "policy.schema.json": policy_schema,
    "asyncapi.json": asyncapi,
}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_document_is_the_generated_one(name: str) -> None:
    published = (FOLDER / name).read_text()

    assert published == json.dumps(DOCUMENTS[name](), indent=2) + "\n", (
        f"write it anew: dispatch-worker schema {name.partition('.')[0]} > docs/contract/{name}"
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    document = DOCUMENTS[name]()

    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_the_dead_letter_schema_names_every_field_that_is_written() -> None:
    assert set(dead_letter_schema()["properties"]) == set(OWN_FIELDS)


def test_no_document_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(DOCUMENTS)
