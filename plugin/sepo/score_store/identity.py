"""Identity of a store: canonical JSON, the key derived from it, and the manifest that holds it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sepo.errors import SepoError

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

SCHEMA_VERSION = 1
KEY_CHARACTERS = 32


def default_store_root() -> Path:
    """Return the default root directory of score stores, without creating it.

    ``$SEPO_TOKEN_SCORES_DIR``, else ``$HF_HOME/sepo/token_scores``, else
    ``~/.cache/huggingface/sepo/token_scores``. An empty variable counts as unset.
    """
    if chosen := os.environ.get("SEPO_TOKEN_SCORES_DIR"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "sepo" / "token_scores"


def canonical_json(value: JSON, *, name: str = "identity") -> bytes:
    """Return the canonical ASCII rendering of a JSON value: sorted keys, no whitespace, tuples as lists.

    ``1`` and ``1.0`` have different renderings, as in Python's ``json``.

    Raises:
        SepoError: If a part of it is not JSON (including NaN and infinities); the message gives its path from ``name``.
    """
    return json.dumps(
        _plain(value, name), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def content_key(identity: Mapping[str, JSON]) -> str:
    """Return a store's key: the first 32 hexadecimal digits of the sha256 of the identity's canonical JSON.

    Raises:
        SepoError: If a part of the identity is not JSON.
    """
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:KEY_CHARACTERS]


def _plain(value: object, where: str) -> JSON:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SepoError(f"{where} is {value}: the key of a score store needs finite numbers; use null or a string")
        return value
    if isinstance(value, Mapping):
        for key in value:
            # json.dumps would silently turn 1 into "1", and two identities into one key.
            if not isinstance(key, str):
                raise SepoError(f"{where} has the key {key!r} of type {type(key).__name__}: JSON keys are strings")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise SepoError(
        f"{where} is of type {type(value).__name__}: the key of a score store needs JSON "
        "(mappings, lists, strings, numbers, booleans, null); convert it first"
    )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a store's content; validated on construction.

    Attributes:
        identity: all that the scores depend on.
        rows: number of rows of the dataset, at least 1.
        columns: names of the score columns, in the order of the files.
        shard_rows: rows per shard, at least 1; the last shard may be shorter.
    """

    identity: Mapping[str, JSON]
    rows: int
    columns: tuple[str, ...]
    shard_rows: int

    def __post_init__(self) -> None:
        for name, number in (("rows", self.rows), ("shard_rows", self.shard_rows)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise SepoError(f"a score store needs {name} of at least 1, found {number!r}")
        names = self.columns
        if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise SepoError(f"a score store needs distinct, non-empty column names, found {list(names)!r}")

    @property
    def key(self) -> str:
        """Key of the store, derived from the identity alone."""
        return content_key(self.identity)

    def to_bytes(self) -> bytes:
        """Return the file's bytes: canonical JSON that ends in a newline and contains its own sha256.

        The key covers the identity only; the checksum also covers the shard size and the rest, in which a flipped digit
        would otherwise be read as another valid layout.
        """
        body: dict[str, JSON] = {
            "columns": self.columns,
            "identity": self.identity,
            "rows": self.rows,
            "schema_version": SCHEMA_VERSION,
            "shard_rows": self.shard_rows,
        }
        digest = hashlib.sha256(canonical_json(body, name="manifest")).hexdigest()
        return canonical_json({**body, "sha256": digest}, name="manifest") + b"\n"


def read_manifest(data: bytes, *, path: Path, expected: Manifest | None) -> Manifest:
    """Return the manifest in ``data``, which must describe the same scores as ``expected``; its shard size is kept.

    If ``expected`` is None, the manifest must still belong to the directory that contains it.

    Raises:
        SepoError: If it is damaged, or of another schema version, identity, row count or columns; the message gives
            ``path``, what was found and what to do.
    """
    advice = f"delete {path.parent} to score again, or set another token_scores_dir"
    try:
        body = json.loads(data)
        version = body["schema_version"]
        # Checked before the rest, which may have other names in another version.
        found = _from_body(body) if version == SCHEMA_VERSION else None
        whole = found is None or found.to_bytes() == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SepoError(f"{path}: damaged, no readable manifest ({type(error).__name__}: {error}); {advice}") from error
    if not whole:
        raise SepoError(f"{path}: damaged, its content does not match its own checksum; {advice}")
    if found is None:
        raise SepoError(f"{path}: schema version {version!r} found, expected {SCHEMA_VERSION}; {advice}")
    key = path.parent.name if expected is None else expected.key
    if found.key != key:
        raise SepoError(f"{path}: holds the identity of key {found.key}, expected {key}; {advice}")
    if expected is None:
        return found
    for name in ("rows", "columns"):
        if getattr(found, name) != getattr(expected, name):
            raise SepoError(
                f"{path}: {name} {getattr(found, name)!r} found, {getattr(expected, name)!r} expected under the same "
                f"identity; {advice}"
            )
    return found


def _from_body(body: Mapping[str, Any]) -> Manifest:
    return Manifest(
        identity=body["identity"], rows=body["rows"], columns=tuple(body["columns"]), shard_rows=body["shard_rows"]
    )
