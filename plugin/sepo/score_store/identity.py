"""What makes two stores the same: canonical JSON, the key derived from it, and the manifest that carries it."""

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
    """Return the folder that holds all stores unless a recipe names another.

    ``$SEPO_TOKEN_SCORES_DIR``, else ``$HF_HOME/sepo/token_scores``, else
    ``~/.cache/huggingface/sepo/token_scores``. An empty variable counts as unset. Nothing is created.
    """
    if chosen := os.environ.get("SEPO_TOKEN_SCORES_DIR"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "sepo" / "token_scores"


def canonical_json(value: JSON, *, name: str = "identity") -> bytes:
    """Return the one ASCII rendering of a JSON value: sorted keys, no whitespace, tuples as lists.

    ``1`` and ``1.0`` stay different, as they are in Python's own JSON.

    Raises:
        SepoError: something in it is no JSON (NaN and infinities included); names the place, found from ``name``.
    """
    return json.dumps(
        _plain(value, name), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def content_key(identity: Mapping[str, JSON]) -> str:
    """Return a store's key: the first 32 hexadecimal digits of the sha256 of the identity's canonical JSON.

    Raises:
        SepoError: the identity holds something that is not JSON.
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
            # json.dumps would turn 1 into "1" without a word, and two identities into one key.
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
    """What a store holds. Ranges are checked here, once.

    Attributes:
        identity: everything that the scores depend on.
        rows: rows of the dataset, at least 1.
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
        """The store's key, from the identity alone."""
        return content_key(self.identity)

    def to_bytes(self) -> bytes:
        """Return the file: canonical JSON that ends in a newline and carries its own sha256.

        The key covers the identity only; the checksum covers the shard size and the rest, where a flipped digit
        would otherwise read as another valid layout.
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


def read_manifest(data: bytes, *, path: Path, wanted: Manifest | None) -> Manifest:
    """Return the manifest in ``data``, which must describe the same scores as ``wanted``; its shard size wins.

    Where nothing particular is wanted, it must still belong to the folder that it lies in.

    Raises:
        SepoError: damaged, of another schema version, or of another identity, row count or columns; names ``path``,
            what was found and what to do.
    """
    advice = f"delete {path.parent} to score again, or set token_scores_dir elsewhere"
    try:
        body = json.loads(data)
        version = body["schema_version"]
        # Looked at before the rest, which another version may have under other names.
        found = _from_body(body) if version == SCHEMA_VERSION else None
        whole = found is None or found.to_bytes() == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SepoError(f"{path}: damaged, no readable manifest ({type(error).__name__}: {error}); {advice}") from error
    if not whole:
        raise SepoError(f"{path}: damaged, its content does not match its own checksum; {advice}")
    if found is None:
        raise SepoError(f"{path}: schema version {version!r} found, this sepo reads {SCHEMA_VERSION}; {advice}")
    expected = path.parent.name if wanted is None else wanted.key
    if found.key != expected:
        raise SepoError(f"{path}: holds the identity of key {found.key}, expected {expected}; {advice}")
    if wanted is None:
        return found
    for name in ("rows", "columns"):
        if getattr(found, name) != getattr(wanted, name):
            raise SepoError(
                f"{path}: {name} {getattr(found, name)!r} found, {getattr(wanted, name)!r} expected under the same "
                f"identity; {advice}"
            )
    return found


def _from_body(body: Mapping[str, Any]) -> Manifest:
    return Manifest(
        identity=body["identity"], rows=body["rows"], columns=tuple(body["columns"]), shard_rows=body["shard_rows"]
    )
