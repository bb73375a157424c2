"""Models that compute in float64 throughout, so that slow twins can be compared to the last digits."""

import pytest


@pytest.fixture(autouse=True)
def _exact(exact_norms):
    """Every test here needs it."""
