"""Texts next to a store: they are read as written, and damage to them does not affect the scores."""

import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepo.errors import SepoError
from sepo.score_store import AnswerText, RowText, disk_size, remove_store
from tests.support.recipes import environment, python_path
from tests.support.stores import ROWS, batches, filled, open_store, row_text, tree

CLEAN = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ANSWER = st.builds(
    AnswerText,
    tokens=st.lists(CLEAN, max_size=5).map(tuple),
    step_texts=st.lists(st.tuples(st.integers(0, 4), CLEAN), max_size=2).map(tuple),
)


def test_rows_are_read_as_written_for_any_batches(tmp_path):
    first, second = filled(tmp_path / "a"), filled(tmp_path / "b")
    bare = disk_size(first.path)
    assert not first.texts.present
    assert first.texts.leave(batches())
    assert second.texts.leave(batches(size=ROWS))
    assert tree(first) == tree(second)
    assert disk_size(first.path) == bare + sum((first.path / f"texts.{x}").stat().st_size for x in ("parquet", "json"))
    assert list(first.texts.read([5, 0, 46, 5, 99])) == [(row, row_text(row)) for row in (0, 5, 46)]
    assert first.verify() == []


@given(rows=st.lists(st.builds(RowText, prompt=CLEAN, chosen=ANSWER, rejected=ANSWER), min_size=1, max_size=4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_back(tmp_path_factory, rows):
    store = open_store(tmp_path_factory.mktemp("any"), rows=len(rows))
    assert store.texts.leave(lambda: [rows])
    assert [row for _, row in store.texts.read(range(len(rows)))] == rows


def test_only_damaged_texts_are_written_again(tmp_path):
    store = filled(tmp_path)
    assert store.texts.leave(batches())
    whole = tree(store)
    assert not store.texts.leave(lambda: pytest.fail("they are there"))
    for name in ("texts.parquet", "texts.json"):
        file = store.path / name
        for damaged in (b"", whole[name][:-9], whole[name][:30] + b"\xff" + whole[name][31:], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            (problem,) = store.verify()
            assert problem.startswith("texts.parquet: ")
            assert store.texts.leave(batches())
            assert tree(store) == whole
    (store.path / "texts.parquet").write_bytes(b"no parquet")
    with pytest.raises(SepoError, match=r"texts.parquet cannot be read .*`sepo score`, writes it again"):
        list(store.texts.read([1]))


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1])
def test_texts_of_other_data_raise(tmp_path, rows):
    store = filled(tmp_path)
    before = tree(store)
    with pytest.raises(SepoError, match=f"{rows} rows of texts for a store of {ROWS}"):
        store.texts.leave(batches(rows=rows))
    assert tree(store) == before


def test_a_failed_write_leaves_no_files(tmp_path, small_disk):
    store = filled(tmp_path / "root")
    before = tree(store)

    def broken():
        yield [row_text(0)]
        raise RuntimeError("a tokenizer")

    with pytest.raises(RuntimeError):
        store.texts.leave(broken)
    assert tree(store) == before
    mounted, enlarge = small_disk
    small = filled(mounted(100))
    (small.path.parent / "ballast").write_bytes(bytes(4096))
    long = RowText("", AnswerText([os.urandom(30_000).hex()]), AnswerText([]))
    with pytest.raises(SepoError, match="No space left on device"):
        small.texts.leave(lambda: [[long] * ROWS])
    assert small.complete
    assert tree(small) == before
    assert enlarge(4096)
    assert small.texts.leave(batches())


def test_no_process_waits_for_another_and_a_store_in_use_is_not_removed(tmp_path):
    store = filled(tmp_path)

    def meanwhile():
        assert not open_store(tmp_path).texts.leave(lambda: pytest.fail("another is at it"))
        with pytest.raises(SepoError, match="another process is filling"):
            remove_store(store.path)
        yield from batches()()

    assert store.texts.leave(meanwhile)
    remove_store(store.path)
    assert not store.path.exists()


PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.support.stores import batches, filled

def die_at(moment):
    def guarded(real):
        def step(*args, **kwargs):
            nonlocal moment
            moment -= 1
            if moment < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return step
    for name in ("fsync", "replace", "open"):
        setattr(os, name, guarded(getattr(os, name)))

root = Path(sys.argv[1])
store = filled(root)
for moment in range(100):
    for name in ("texts.parquet", "texts.json"):
        (store.path / name).unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        die_at(moment)
        store.texts.leave(batches())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    store.texts.leave(batches())
    assert store.texts.problem() is None and store.verify() == [] and not list(store.path.glob(".*")), moment
    if status == 0:
        print(moment)
        sys.exit()
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_killed_at_every_disk_operation_the_next_run_writes_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    env = environment(PYTHONPATH=python_path())
    done = subprocess.run([sys.executable, program, tmp_path / "root"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 6  # two files, each synced, renamed, and its directory synced
