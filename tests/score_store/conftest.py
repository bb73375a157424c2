"""Fixtures of the score store tests."""

import pytest

from tests.support.stores import filled, tree


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that was filled without interruption."""
    return tree(filled(tmp_path_factory.mktemp("undisturbed")))
