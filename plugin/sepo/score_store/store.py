"""Score stores: open, fill, verify, read."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sepo.errors import SepoError
from sepo.score_store.disk import (
    MANIFEST_LOCK,
    file_digest,
    in_use,
    locked,
    make_folder,
    read_if_there,
    remove_leftovers,
    replace_durably,
)
from sepo.score_store.identity import JSON, Manifest, canonical_json, read_manifest
from sepo.score_store.shard_format import Scores, ShardRange, encode_shard, map_shard, shard_schema, split_rows
from sepo.score_store.texts import TEXTS_FILE, StoredTexts

_LOG = logging.getLogger("sepo.score_store")
_NAMED_AT_MOST = 20


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Result of checking a shard's two files. ``problem`` is None if they are sound."""

    problem: str | None
    digest: str | None = None  # of the shard's file on disk
    recorded: str | None = None  # digest in its sidecar
    absent: bool = False  # not written yet, as opposed to damaged


class ScoreStore:
    """Per-token scores of one dataset in ``<root>/<key>/``. Constructed by :meth:`open` or :meth:`at`.

    An instance must be used by one thread only; any number of processes may use the same directory. Shards that were
    found sound are not read again by the same instance, except by :meth:`verify`.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> store = ScoreStore.open(root=root, identity={"oracle": "sha"}, rows=3, columns=["scores"], shard_rows=2)
        >>> store.fill(lambda start, stop: {"scores": [[float(row)] * row for row in range(start, stop)]})
        >>> store.table().to_pydict()
        {'scores': [[], [1.0], [2.0, 2.0]]}
        >>> store.verify()
        []
    """

    def __init__(self, *, root: Path, manifest: Manifest) -> None:
        self._key = manifest.key
        self._path = root / self._key
        self._locks = root / ".locks" / self._key
        self._manifest = manifest
        self._shards = tuple(split_rows(rows=manifest.rows, shard_rows=manifest.shard_rows))
        self._sound: dict[int, str] = {}  # shard index -> digest of the file, verified by this instance
        self._unfit: set[str] = set()  # digests of files that verify() found sound and unusable
        self._warned: set[int] = set()

    @classmethod
    def open(
        cls, *, root: Path, identity: Mapping[str, JSON], rows: int, columns: Sequence[str], shard_rows: int = 512
    ) -> ScoreStore:
        """Open the store of an identity, creating it if it does not exist.

        Args:
            root: root directory of all stores, see :func:`default_store_root`.
            identity: all that the scores depend on; JSON, without paths or times.
            rows: number of rows of the dataset.
            columns: names of the score columns, each a ``list<float32>`` with one value per token.
            shard_rows: rows per shard, the most that a killed process loses. An existing store keeps its shard size.

        Raises:
            SepoError: If an argument is out of range, the file system refuses, or the existing manifest is damaged or
                describes other scores; the message gives which and what to do.
        """
        manifest = Manifest(identity=identity, rows=rows, columns=tuple(columns), shard_rows=shard_rows)
        root = Path(root)
        data = _ensured_manifest(root, manifest)
        path = root / manifest.key / "manifest.json"
        return cls(root=root, manifest=read_manifest(data, path=path, expected=manifest))

    @classmethod
    def at(cls, path: Path) -> ScoreStore:
        """Open an existing store by its directory, without its identity.

        Args:
            path: ``<root>/<key>``.

        Raises:
            SepoError: If there is no store, or its manifest is damaged.
        """
        path = Path(path)
        data = read_if_there(path / "manifest.json")
        if data is None:
            raise SepoError(f"{path} holds no score store (no manifest.json); give the directory of a score store.")
        return cls(root=path.parent, manifest=read_manifest(data, path=path / "manifest.json", expected=None))

    @property
    def key(self) -> str:
        """Key of the store: 32 hexadecimal digits, derived from the identity alone."""
        return self._key

    @property
    def path(self) -> Path:
        """Directory of the store."""
        return self._path

    @property
    def shards(self) -> list[ShardRange]:
        """All shards in dataset order, written or not."""
        return list(self._shards)

    @property
    def manifest(self) -> Manifest:
        """Manifest of the store: identity, rows, columns, shard size."""
        return self._manifest

    @property
    def texts(self) -> StoredTexts:
        """Texts of the rows, which a run may have written next to the scores; scores do not depend on them."""
        return StoredTexts(self._path, rows=self._manifest.rows, locks=self._locks)

    @property
    def rows_written(self) -> int:
        """Number of rows of the shards that have a sidecar; by file names only (:meth:`missing` reads the files)."""
        return sum(shard.rows for shard in self._shards if self._sidecar(shard).is_file())

    @property
    def finished(self) -> bool:
        """Whether the store was completed, by file names only (:attr:`complete` and :meth:`verify` read the files)."""
        return (self._path / "complete.json").is_file() and self.rows_written == self._manifest.rows

    @property
    def complete(self) -> bool:
        """Whether every shard is present and ``complete.json`` has the digest of exactly these shards."""
        return not self.missing() and read_if_there(self._path / "complete.json") == self._complete_bytes(self._sound)

    def missing(self) -> list[ShardRange]:
        """Return the shards that remain to be computed: not written, or damaged (logged as a warning, once)."""
        return [shard for shard in self._shards if not self._present(shard)]

    def fill(
        self,
        compute: Callable[[int, int], Scores],
        *,
        offset: int = 0,
        on_shard: Callable[[ShardRange, int], None] | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        """Compute missing shards, and return when the store is complete, including shards of other processes.

        Shards that another process is computing are skipped and checked again later; the lock of a process that died is
        free, so its shard is computed here. Finished shards are never computed again.

        Args:
            compute: ``compute(start, stop)`` returns, per column, one sequence of finite float32 scores (or
                one-dimensional numpy array) for each row in ``[start, stop)``. Its exceptions propagate, with the
                shard's lock released.
            offset: index of the first shard, modulo the number of shards; ranks start at different shards so that they
                seldom contend, e.g. ``rank * len(store.shards) // world_size``.
            on_shard: called as ``on_shard(shard, done_rows)`` for each shard that becomes present during this call,
                computed by any process; ``done_rows`` counts all rows present, including those from before the call.
            poll_seconds: interval between checks while only other processes have work left.

        Raises:
            SepoError: If ``compute`` returned invalid scores (the message gives the row), or the file system refuses
                (the message gives the path and the bytes). Finished shards are kept, and a later call resumes.
        """
        if not poll_seconds > 0:
            raise SepoError(f"poll_seconds is {poll_seconds!r}, expected more than 0")
        with in_use(self._locks):
            self._fill(compute, offset=offset, on_shard=on_shard, poll_seconds=poll_seconds)

    def _fill(
        self,
        compute: Callable[[int, int], Scores],
        *,
        offset: int,
        on_shard: Callable[[ShardRange, int], None] | None,
        poll_seconds: float,
    ) -> None:
        _ensured_manifest(self._path.parent, self._manifest)  # the store may have been removed since it was opened
        start = offset % len(self._shards)
        missing = self.missing()
        pending = [s for s in missing if s.index >= start] + [s for s in missing if s.index < start]
        waited_for: list[ShardRange] = []
        while pending:
            elsewhere = []
            for shard in pending:
                if not self._settle(shard, compute):
                    elsewhere.append(shard)
                elif on_shard is not None:
                    on_shard(shard, sum(s.rows for s in self._shards if s.index in self._sound))
            if elsewhere == pending:
                if elsewhere != waited_for:
                    _LOG.info("waiting for other processes to score %s in %s", _names(elsewhere), self._path)
                    waited_for = elsewhere
                time.sleep(poll_seconds)
            pending = elsewhere
        self._finish()

    def verify(self) -> list[str]:
        """Read every file again and return the problems, one line each; an empty list if there are none.

        For an incomplete store they include the shards that are not written. Nothing is changed on disk; a damaged
        shard counts as missing afterwards, so that :meth:`fill` computes it again.
        """
        problems = []
        if read_if_there(self._path / "manifest.json") != self._manifest.to_bytes():
            problems.append("manifest.json: changed or removed since the store was opened")
        checks = {shard.index: self._check(shard) for shard in self._shards}
        self._sound = {i: check.digest for i, check in checks.items() if check.problem is None and check.digest}
        for shard in self._shards:
            problem = checks[shard.index].problem or self._misfit(shard)
            if problem is not None:
                if (digest := self._sound.pop(shard.index, None)) is not None:
                    self._unfit.add(digest)
                problems.append(f"{shard.name}: {problem}")
        known = {f"{shard.name}{ending}" for shard in self._shards for ending in (".arrow", ".json")}
        strays = sorted(file.name for file in self._path.glob("shard-*") if file.name not in known)
        problems.extend(f"{name}: belongs to no shard of this store; delete it" for name in strays)
        problems.extend(self._complete_problems(checks))
        if self.texts.present and (problem := self.texts.problem()):
            problems.append(f"{TEXTS_FILE}: {problem}")
        return problems

    def files(self) -> list[Path]:
        """Return the shards' Arrow files in dataset order, for ``datasets.Dataset.from_file``.

        ``datasets`` writes the caches of ``map`` and ``filter`` next to the first file of a dataset; pass those calls
        a ``cache_file_name`` elsewhere, or put the scores second in ``concatenate_datasets(..., axis=1)``.

        Raises:
            SepoError: If a shard is missing; the message gives its name.
        """
        if missing := self.missing():
            raise SepoError(
                f"{self._path}: {len(missing)} of {len(self._shards)} shards are missing ({_names(missing)}); "
                "run fill() first"
            )
        return [self._arrow(shard) for shard in self._shards]

    def table(self) -> pa.Table:
        """Return all rows in dataset order, one chunk per shard, memory-mapped (no copy in memory).

        Raises:
            SepoError: If a shard is missing; the message gives its name.
        """
        return pa.concat_tables([map_shard(path) for path in self.files()])

    def sound_shards(self) -> list[tuple[ShardRange, pa.Table]]:
        """Return the shards that are present and sound, with their memory-mapped rows; others are skipped silently."""
        sound = (s for s in self._shards if self._check(s).problem is None and self._misfit(s) is None)
        return [(shard, map_shard(self._arrow(shard))) for shard in sound]

    def _arrow(self, shard: ShardRange) -> Path:
        return self._path / f"{shard.name}.arrow"

    def _sidecar(self, shard: ShardRange) -> Path:
        return self._path / f"{shard.name}.json"

    def _sidecar_bytes(self, shard: ShardRange, digest: str) -> bytes:
        # The key and the index reject files that were moved here from another store or another shard.
        body: dict[str, JSON] = {"index": shard.index, "rows": shard.rows, "sha256": digest, "store": self._key}
        return canonical_json(body, name=shard.name) + b"\n"

    def _complete_bytes(self, digests: Mapping[int, str | None]) -> bytes:
        lines = [str(digests.get(shard.index)) for shard in self._shards]
        digest = hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()
        return canonical_json({"sha256": digest, "shards": len(self._shards)}, name="complete") + b"\n"

    def _check(self, shard: ShardRange) -> _Check:
        try:
            record = read_if_there(self._sidecar(shard))
        except SepoError as error:
            return _Check(problem=str(error))
        if record is None:
            return _Check(problem="not written yet; run fill()", absent=True)
        recorded = _recorded_digest(record)
        try:
            digest = file_digest(self._arrow(shard))
        except OSError as error:
            return _Check(problem=f"its sidecar exists, its file cannot be read: {error.strerror}", recorded=recorded)
        if record == self._sidecar_bytes(shard, digest):
            return _Check(problem=None, digest=digest, recorded=recorded)
        found = "its sidecar is damaged" if recorded is None else f"its sidecar records sha256 {recorded}"
        return _Check(problem=f"damaged: its file has sha256 {digest}, {found}", digest=digest, recorded=recorded)

    def _present(self, shard: ShardRange) -> bool:
        if shard.index in self._sound:
            return True
        check = self._check(shard)
        if check.problem is None and check.digest is not None and check.digest not in self._unfit:
            self._sound[shard.index] = check.digest
            return True
        if not check.absent and shard.index not in self._warned:
            self._warned.add(shard.index)
            _LOG.warning("%s: %s; it will be computed again", self._arrow(shard), check.problem or "unusable")
        return False

    def _settle(self, shard: ShardRange, compute: Callable[[int, int], Scores]) -> bool:
        """Ensure that a shard is present; return False if another process is computing it."""
        if self._present(shard):
            return True
        with locked(self._locks / f"{shard.name}.lock", wait=False) as held:
            if not held:
                return False
            remove_leftovers(self._arrow(shard))
            remove_leftovers(self._sidecar(shard))
            # The last holder may have finished it between the check above and the lock.
            if not self._present(shard):
                scores = compute(shard.start, shard.stop)
                self._write(shard, encode_shard(scores, shard=shard, columns=self._manifest.columns))
        return True

    def _write(self, shard: ShardRange, data: pa.Buffer) -> None:
        digest = hashlib.sha256(data).hexdigest()
        replace_durably(path=self._arrow(shard), data=memoryview(data))
        replace_durably(path=self._sidecar(shard), data=self._sidecar_bytes(shard, digest))
        self._sound[shard.index] = digest

    def _finish(self) -> None:
        path = self._path / "complete.json"
        data = self._complete_bytes(self._sound)
        if read_if_there(path) == data:
            return
        with locked(self._locks / "complete.lock", wait=True):
            remove_leftovers(path)
            if read_if_there(path) != data:
                replace_durably(path=path, data=data)

    def _misfit(self, shard: ShardRange) -> str | None:
        """Return the problem of a file that passes its checksum (not Arrow, other columns or row count), or None."""
        try:
            table = map_shard(self._arrow(shard))
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            return f"not a readable Arrow stream: {error}"
        columns = self._manifest.columns
        if table.schema != shard_schema(columns) or table.num_rows != shard.rows:
            return f"holds {table.num_rows} rows of {table.schema.names}, expected {shard.rows} of {list(columns)}"
        return None

    def _complete_problems(self, checks: Mapping[int, _Check]) -> list[str]:
        data = read_if_there(self._path / "complete.json")
        if data is None:
            return ["complete.json: not written yet; run fill()"]
        # A damaged file is reported under its own name; either the file or its sidecar may be the sound one.
        as_recorded = self._complete_bytes({i: check.recorded for i, check in checks.items()})
        as_found = self._complete_bytes({i: check.digest for i, check in checks.items()})
        if data in (as_recorded, as_found):
            return []
        return ["complete.json: does not match the shards' checksums; run fill() to write it again"]


def _ensured_manifest(root: Path, manifest: Manifest) -> bytes:
    """Return the bytes of the existing manifest, or write ``manifest`` and return its bytes."""
    path = root / manifest.key / "manifest.json"
    data = read_if_there(path)
    if data is None:
        # Two processes may create a store with different shard sizes. Under the lock the first one sets it for both.
        with locked(root / ".locks" / manifest.key / MANIFEST_LOCK, wait=True):
            data = read_if_there(path)
            if data is None:
                data = manifest.to_bytes()
                make_folder(path.parent)
                remove_leftovers(path)
                replace_durably(path=path, data=data)
    return data


def _recorded_digest(record: bytes) -> str | None:
    try:
        digest = json.loads(record)["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return digest if isinstance(digest, str) and digest.isascii() else None


def _names(shards: Sequence[ShardRange]) -> str:
    listed = ", ".join(shard.name for shard in shards[:_NAMED_AT_MOST])
    return listed if len(shards) <= _NAMED_AT_MOST else f"{listed} and {len(shards) - _NAMED_AT_MOST} more"
