"""Stores for the tests of `sepo scores`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tokens"))
