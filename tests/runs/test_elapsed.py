"""Seconds of training by step, of runs in one piece, resumed and damaged."""

import json

import pytest

from sepo.runs.elapsed import training_seconds
from sepo.runs.folder import HOST_LOG_FILE
from sepo.runs.log_reader import LOG_FILE


def write(folder, name, *entries):
    (folder / name).write_text(
        "".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries)
    )


def begin(step, time):
    return {"event": "begin", "step": step, "time": time}


def logged(step, time):
    return {"event": "log", "step": step, "time": time, "loss": 0.5}


def test_seconds_are_counted_from_the_beginning_of_training(tmp_path):
    prepared = {"event": "prepare", "step": 0, "time": 50.0}
    write(tmp_path, LOG_FILE, prepared, begin(0, 100.0), logged(1, 102.5), logged(2, 104.0), logged(2, 106.0))
    assert training_seconds(tmp_path) == {1: 2.5, 2: 6.0}  # an evaluation at step 2 took two seconds


def test_a_resumed_run_counts_neither_the_pause_nor_repeated_steps(tmp_path):
    first = [begin(0, 100.0), logged(1, 101.0), logged(2, 102.0), logged(3, 103.0)]
    write(tmp_path, LOG_FILE, *first, begin(2, 500.0), logged(3, 501.5), logged(4, 502.5))
    assert training_seconds(tmp_path) == {1: 1.0, 2: 2.0, 3: 3.5, 4: 4.5}


def elapsed(step, time):
    return {"current_steps": step, "elapsed_time": time, "loss": 0.5}


@pytest.mark.parametrize(
    ("entries", "seconds"),
    [
        ([elapsed(1, "0:00:05"), elapsed(2, "0:01:05"), elapsed(3, "2 days, 1:00:00")], {1: 5, 2: 65, 3: 176400}),
        ([elapsed(1, "0:00:05"), elapsed(2, "0:00:09"), elapsed(3, "0:00:20"), elapsed(3, "0:00:06")],
         {1: 5, 2: 9, 3: 15}),
        ([elapsed(2, "0:00:05"), "cut", elapsed(4, "soon"), elapsed(None, "0:00:06"), "[]"], {2: 5}),
    ],
)  # fmt: skip
def test_a_stage_of_the_host_has_the_hosts_seconds(tmp_path, entries, seconds):
    write(tmp_path, HOST_LOG_FILE, *entries)
    assert training_seconds(tmp_path) == seconds


def test_no_log_has_no_seconds(tmp_path):
    assert training_seconds(tmp_path) == {}
