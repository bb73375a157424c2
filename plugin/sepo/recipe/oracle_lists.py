"""The key ``oracles``: a list of oracles, each with its own keys, as one text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sepo.errors import SepoError, nearest

MEMBER_KEYS = tuple(
    f"{name}{end}"
    for name in ("oracle_model", "oracle_model_adapters", "oracle_base_model", "oracle_base_model_adapters")
    for end in ("", "_revision")
)
"""Keys that an oracle of the list may set."""
_EXPECTED = "expected a list such as [{oracle_model_adapters: a}, {oracle_model_adapters: b}]"


def oracles_text(name: str, value: Any) -> str:
    """Return the one text for a value of the key ``oracles``, from YAML or a command line.

    >>> oracles_text("oracles", [{"oracle_model_adapters": ["sft", "dpo"]}, {"oracle_model": "o"}])
    '[{"oracle_model_adapters": "sft,dpo"}, {"oracle_model": "o"}]'

    Raises:
        SepoError: If it is no list of mappings, or one has an unknown key.
    """
    try:
        items = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        items = value
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) and item for item in items):
        raise SepoError(f"{name} is {value!r}, {_EXPECTED}.")
    return json.dumps([_member(f"{name}, oracle {number}", item) for number, item in enumerate(items, start=1)])


def _member(where: str, item: Mapping[Any, Any]) -> dict[str, str]:
    found = {}
    for key, value in item.items():
        if key not in MEMBER_KEYS:
            known = ", ".join(MEMBER_KEYS)
            raise SepoError(f"{where}: unknown key '{key}', expected some of {known}.{nearest(str(key), MEMBER_KEYS)}")
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, str | int) and str(part).strip() for part in parts):
            raise SepoError(f"{where}: {key} is {value!r}, expected a name, or a list of names.")
        found[str(key)] = ",".join(map(str, parts))
    return found


def oracle_items(text: str) -> list[dict[str, str]]:
    """Return the keys of each oracle from ``oracles_text``."""
    items: list[dict[str, str]] = json.loads(text)
    return items
