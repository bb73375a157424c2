"""Digests of weights: read once for all processes and runs, and never taken from before a change."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap

import pytest

from sepo.score_store import digests
from sepo.score_store.digests import LARGE, cached_digest
from sepo.score_store.fingerprint import model_fingerprint

FIRST, SECOND = b"a" * LARGE, b"b" * LARGE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the directory of the entries; files count as settled as soon as they are written."""
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", str(tmp_path / "scores"))
    monkeypatch.setattr(digests, "SETTLED", -60.0)
    return tmp_path / "scores" / ".digests"


@pytest.fixture
def reads(monkeypatch):
    """Return the list of files that were read."""
    made, real = [], digests.file_digest

    def counted(path):
        made.append(path.name)
        return real(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    return made


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(FIRST)
    return file


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def entries(cache):
    return sorted(file.name for file in cache.glob("*.json"))


# argv: directory of a model, log of the files that are read
PROGRAM = """
import sys, time
from pathlib import Path
from sepo.score_store import digests
from sepo.score_store.fingerprint import model_fingerprint

real, digests.SETTLED = digests.file_digest, -60.0

def counted(path):
    with open(sys.argv[2], "a") as log:
        log.write(f"{path.name}\\n")
    time.sleep(1)
    return real(path)

digests.file_digest = counted
print(model_fingerprint(Path(sys.argv[1])))
"""


def test_of_several_processes_one_reads_and_a_second_run_reads_nothing(tmp_path):
    model, log = tmp_path / "model", tmp_path / "log"
    model.mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (model / name).write_bytes(FIRST)
    (model / "config.json").write_text("{}")

    def run():
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), model, log], stdout=subprocess.PIPE, text=True
        )

    together = [run() for _ in range(3)]
    found = {process.communicate()[0] for process in together}
    found.add(run().communicate()[0])
    parts = {"model-1.safetensors": sha256(FIRST), "model-2.safetensors": sha256(FIRST), "config.json": sha256(b"{}")}
    assert found == {sha256(json.dumps(parts, sort_keys=True).encode()) + "\n"}
    assert sorted(log.read_text().split()) == ["model-1.safetensors", "model-2.safetensors"]


def test_a_model_that_two_specifications_share_is_read_once(weights, reads):
    assert model_fingerprint(weights.parent) == model_fingerprint(weights.parent, ["model.safetensors"])
    assert reads == ["model.safetensors"]


def overwritten(file):
    with open(file, "r+b") as opened:
        opened.write(SECOND)


def replaced(file):
    other = file.with_name("other")
    other.write_bytes(SECOND)
    os.replace(other, file)


@pytest.mark.parametrize("change", [overwritten, replaced])
def test_a_changed_file_is_read_again_also_if_size_and_time_are_restored(weights, reads, change):
    before = weights.stat()
    assert cached_digest(weights) == sha256(FIRST)
    change(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_digest(weights) == sha256(SECOND)
    assert len(reads) == 2
    assert cached_digest(weights) == sha256(SECOND)
    assert len(reads) == 2


def test_a_file_of_another_size_is_read_again(weights):
    assert cached_digest(weights) == sha256(FIRST)
    weights.write_bytes(FIRST + b"a")
    assert cached_digest(weights) == sha256(FIRST + b"a")


def test_a_write_that_the_clock_of_the_file_system_does_not_show_is_seen(weights, cache, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 2.0)
    monkeypatch.setattr(digests, "_state", lambda path: [path.stat().st_size])  # its times do not move
    assert cached_digest(weights) == sha256(FIRST)
    overwritten(weights)
    assert cached_digest(weights) == sha256(SECOND)
    assert entries(cache) == []


@pytest.mark.parametrize(("later", "kept"), [(1.9, 0), (2.1, 1), (-3600.0, 0)])
def test_a_digest_is_kept_if_the_last_change_is_two_seconds_old(weights, cache, monkeypatch, later, kept):
    found = weights.stat()
    now = max(found.st_mtime, found.st_ctime) + later
    monkeypatch.setattr(digests, "SETTLED", 2.0)
    monkeypatch.setattr(digests.time, "time", lambda: now)
    assert cached_digest(weights) == sha256(FIRST)
    assert len(entries(cache)) == kept


def test_a_file_that_changes_while_it_is_read_is_not_kept(weights, cache, monkeypatch):
    real = digests.file_digest

    def changing(path):
        digest = real(path)
        overwritten(path)
        return digest

    monkeypatch.setattr(digests, "file_digest", changing)
    cached_digest(weights)
    assert entries(cache) == []


def flipped(data):
    digest = sha256(FIRST)
    other = digest.replace(digest[0], "0" if digest[0] != "0" else "1", 1)
    return data.replace(digest.encode(), other.encode())


@pytest.mark.parametrize(
    "damaged",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" + data,
        lambda data: b"[" * 100_000,
        lambda data: b"[]",
        lambda data: b'{"sha256": 3}',
        lambda data: data.replace(b'"state":', b'"states":'),
        flipped,
    ],
    ids=["empty", "half", "no text", "deep", "a list", "a number", "another key", "another digest"],
)
def test_a_damaged_entry_is_written_again(weights, cache, reads, damaged):
    cached_digest(weights)
    (name,) = entries(cache)
    whole = (cache / name).read_bytes()
    assert damaged(whole) != whole
    (cache / name).write_bytes(damaged(whole))
    assert cached_digest(weights) == sha256(FIRST)
    assert len(reads) == 2
    assert (cache / name).read_bytes() == whole


def test_the_entry_of_another_path_is_not_used(weights, cache, reads):
    other = weights.with_name("other.safetensors")
    os.link(weights, other)  # the same inode and times
    for file in (weights, other):
        cached_digest(file)
    first, second = entries(cache)
    (cache / second).write_bytes((cache / first).read_bytes())
    for file in (weights, other):
        assert cached_digest(file) == sha256(FIRST)
    assert len(reads) == 3


@pytest.mark.parametrize("kind", ["a file in the way", "no home", "no locks"])
def test_without_a_cache_files_are_read(weights, tmp_path, reads, monkeypatch, kind):
    if kind == "a file in the way":
        (tmp_path / "scores").write_text("")
    elif kind == "no home":
        monkeypatch.setattr(digests, "default_store_root", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setattr(digests, "locked", lambda path, *, wait: (_ for _ in ()).throw(NotImplementedError))
    for _ in range(2):
        assert cached_digest(weights) == sha256(FIRST)
    assert len(reads) == 2


def test_an_unreadable_entry_costs_a_read(weights, cache, reads):
    cached_digest(weights)
    (name,) = entries(cache)
    (cache / name).unlink()
    (cache / name).mkdir()
    assert cached_digest(weights) == sha256(FIRST)
    assert len(reads) == 2


def test_small_files_have_no_entry(tmp_path, cache, reads):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(FIRST[:-1])
    assert cached_digest(file) == cached_digest(file) == sha256(FIRST[:-1])
    assert not cache.exists()


def test_a_missing_file_is_an_error_of_the_caller(tmp_path):
    with pytest.raises(FileNotFoundError):
        cached_digest(tmp_path / "gone.safetensors")
