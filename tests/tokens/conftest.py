"""What the tests of the store share."""

import pytest

from stores import filled, tree


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that nothing happened to."""
    return tree(filled(tmp_path_factory.mktemp("undisturbed")))
