"""`sepo scores`: list, show, verify, export and remove stores, without a host."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sepo.cli import main
from sepo.errors import SepoError
from sepo.score_store import ScoreStore, find_store, read_names, write_names
from sepo.score_store.summary import summarize
from tests.support.recipes import environment, python_path
from tests.support.stores import COLUMNS, IDENTITY, ROWS, SHARDS, filled, open_store, scores, tree

NAMES = {"scorer": "oracle", "models": "saves/oracle over saves/base", "dataset": "my_pairs", "part": "train"}


@pytest.fixture
def root(tmp_path):
    store = filled(tmp_path)
    write_names(tmp_path, store.key, NAMES)
    open_store(tmp_path, identity={**IDENTITY, "cutoff_len": 1})
    return tmp_path


@pytest.fixture
def printed(capsys):
    """Return a function that runs `sepo scores` and returns its output."""

    def run(*words, expect=0):
        assert main(["scores", *map(str, words)]) == expect
        output = capsys.readouterr()
        return " ".join((output.out + output.err).split())

    return run


def test_ls_lists_every_store_with_what_it_holds(root, printed, tmp_path):
    text = printed("ls", "--dir", root)
    assert "2 stores" in text
    for piece in (
        "oracle", "saves/oracle over", "my_pairs (train)", f"{ROWS} of {ROWS}", f"0 of {ROWS}", "yes", "no", "KiB",
    ):  # fmt: skip
        assert piece in text
    (tmp_path / "empty").mkdir()
    assert "no score stores" in printed("ls", "--dir", tmp_path / "empty")


def test_names_are_not_part_of_a_store(root):
    store = filled(root)
    before = tree(store)
    write_names(root, store.key, {**NAMES, "dataset": "another name"})
    assert read_names(root, store.key)["dataset"] == "another name"
    assert tree(store) == before
    assert store.verify() == []


def test_show_prints_what_a_store_depends_on_and_a_few_rows(root, printed):
    store = filled(root)
    text = printed("show", store.key[:8], "--dir", root)
    for piece in (str(store.path), "saves/oracle over saves/base", f"{ROWS} of {ROWS} pairs", "cutoff_len 2048",
                  "quantization_bit", "first rows", "selected 30%", "chosen_scores, rejected_scores"):  # fmt: skip
        assert piece in text
    assert "unfinished" in printed("show", open_store(root, identity={**IDENTITY, "cutoff_len": 1}).path)


def test_show_compares_scores_with_noise(tmp_path, printed):
    draws = np.random.default_rng(0)
    flat = {side: [draws.normal(size=20).astype(np.float32) for _ in range(60)] for side in ("chosen", "rejected")}
    lower = [np.where(np.arange(20) < 6, row - 3, row) for row in flat["rejected"]]
    for name, rejected in (("noise", flat["rejected"]), ("oracle", lower)):
        columns = {"chosen_scores": flat["chosen"], "rejected_scores": rejected}
        store = ScoreStore.open(
            root=tmp_path / name, identity={"scorer": "oracle"}, rows=60, columns=tuple(columns), shard_rows=60
        )
        store.fill(lambda start, stop, columns=columns: {key: rows[start:stop] for key, rows in columns.items()})
        text = " ".join(printed("show", str(store.path)).split())
        assert "against noise: the selected 30% of chosen and rejected tokens differ by" in text
        assert ("these scores cannot be told from noise: the selected tokens" in text) is (name == "noise")


def test_the_summary_agrees_with_numpy(root):
    store = filled(root)
    summary = summarize(store)
    rows = scores(0, ROWS)
    assert summary.rows == ROWS
    for index, name in enumerate(COLUMNS):
        found, flat = summary.sides[name], np.concatenate(rows[name]).astype(np.float32).astype(np.float64)
        assert (found.responses, found.tokens) == (ROWS, len(flat))
        assert [found.mean, found.std, found.total] == pytest.approx([flat.mean(), flat.std(), flat.sum()])
        assert abs((flat <= found.median).mean() - 0.5) < 0.03
        assert abs((flat <= found.low).mean() - 0.05) < 0.03
        assert abs((flat >= found.high).mean() - 0.05) < 0.03
        kept = 0.0
        for row in rows[name]:
            best = np.sort(row.astype(np.float32))[:: -1 if index == 0 else 1]
            kept += best[: max(1, math.floor(0.3 * len(row) + 1e-9))].sum()
        assert found.kept == pytest.approx(float(kept), rel=1e-6)


def test_a_share_of_sums_with_different_signs_is_none():
    from sepo.score_store.distribution import distribution

    values, lengths = torch.tensor([-1.0, -2.0, 5.0, 1.0]), torch.tensor([3, 1])
    whole = distribution(lambda: [(values, lengths)], ratio=0.34, largest=True)
    assert whole.carried == pytest.approx(6 / 3)
    assert distribution(lambda: [(values, lengths)], ratio=0.34, largest=False).carried is None


def test_verify_finds_a_flipped_byte_in_every_file(root, printed):
    store = filled(root)
    assert "ok" in printed("verify", store.path)
    files = sorted(store.path.iterdir())
    assert len(files) == 2 * SHARDS + 2
    for number, path in enumerate(files):
        whole = path.read_bytes()
        place = number * 7919 % len(whole)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        text = printed("verify", "--dir", root, expect=1)
        assert path.stem in text
        assert "1 damaged, 1 unfinished" in text
        path.write_bytes(whole)
    assert "0 damaged" in printed("verify", "--dir", root)


def test_export_of_a_store_has_its_numbers_in_order(root, printed, tmp_path):
    store = filled(root)
    printed("export", store.path, "-o", tmp_path / "x.jsonl")
    printed("export", store.path, "-o", tmp_path / "x.parquet")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(ROWS))
    assert [line["rejected_scores"] for line in lines] == store.table()["rejected_scores"].to_pylist()
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == lines
    assert not list(tmp_path.glob(".*.tmp"))


def test_rm_prompts_and_refuses_while_another_process_fills(root, printed, monkeypatch):
    store = filled(root)
    assert "pass --yes" in printed("rm", store.path, expect=2)
    answers = io.StringIO("n\n")
    answers.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", answers)
    assert "kept" in printed("rm", store.path, expect=1)
    other = open_store(root, identity={**IDENTITY, "cutoff_len": 1})

    def compute(start, stop):
        assert "another process is filling" in printed("rm", other.path, "--yes", expect=2)
        return scores(start, stop)

    other.fill(compute)
    printed("rm", store.path, "--yes")
    assert not store.path.exists()
    assert read_names(root, store.key) == {}
    assert "1 stores" in printed("ls", "--dir", root)
    assert filled(root).complete


def test_a_dead_writer_blocks_no_other_process(root, printed):
    code = (
        "import os, signal, sys; from tests.support.stores import *; "
        "store = open_store(Path(sys.argv[1]), shard_rows=3, identity={'a': 1}); "
        "store.fill(lambda a, b: os.kill(os.getpid(), signal.SIGKILL))"
    )
    env = environment(PYTHONPATH=python_path())
    done = subprocess.run([sys.executable, "-c", code, str(root)], env=env, check=False)
    assert done.returncode == -9
    dead = open_store(root, identity={"a": 1})
    assert list((root / ".locks" / dead.key).glob("user-*.lock"))
    printed("rm", dead.path, "--yes")
    assert not list((root / ".locks" / dead.key).glob("user-*.lock"))


def test_a_store_that_is_removed_after_opening_is_created_again(root, printed):
    opened = open_store(root)
    printed("rm", opened.path, "--yes")
    opened.fill(scores)
    assert open_store(root).complete


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "zzz"], "'zzz' is neither the directory of a score store nor the prefix of a key"),
        (["show", ""], "neither"),
        (
            ["export", "0", "-o", "x.csv"],
            "the extension is '.csv', expected .jsonl, .json (both JSON lines) or .parquet",
        ),
        (["export", "0", "-o", "nowhere/x.jsonl"], "nowhere does not exist; create it"),
        (["export", "no.yaml", "-o", "x.jsonl"], "no.yaml"),
    ],
)
def test_refusals_are_one_line(root, capsys, words, message):
    assert main(["scores", *words, "--dir", str(root)]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_a_prefix_must_be_of_one_store(tmp_path):
    first = open_store(tmp_path, identity={"n": 0}).path.name
    number = 1
    while not (alike := open_store(tmp_path, identity={"n": number}).path.name).startswith(first[0]):
        number += 1
    with pytest.raises(
        SepoError, match=rf"'{first[0]}' is the prefix of 2 keys in .*; give more characters of the key"
    ):
        find_store(first[0], root=tmp_path)
    for name in (first, alike):
        assert find_store(name[:12].upper(), root=tmp_path).name == name
