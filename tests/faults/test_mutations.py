"""The faults that `make mutations` plants: each is about code that is there."""

import pytest

from tests.faults.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_what_a_mutation_replaces_stands_in_the_code_once(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.now) == 1
