"""Results by work unit: kept over any kill, computed once by several processes, never of other settings."""

import json
import multiprocessing
import os
import random
import signal

import pytest

from sepo.errors import SepoError
from sepo.pairs.parts import Parts, remove_parts
from sepo.pairs.units import work_units

UNITS = work_units([3, 1, 2, 5, 4], samples=2, max_new_tokens=1, batch_tokens=8)


def value(unit):
    return [f"{prompt} {number}" for prompt, number in unit.samples]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    Parts(folder, "samples", UNITS, settings="s").fill(value)
    assert len(contents(folder)) == len(UNITS) > 4
    return contents(folder)


def test_results_are_read_back_and_computed_once(tmp_path, whole):
    parts = Parts(tmp_path, "samples", UNITS, settings="s")
    assert parts.missing() == list(UNITS)
    seen = []
    parts.fill(value, on_unit=lambda unit: seen.append(unit.index))
    assert seen == list(range(len(UNITS)))
    assert [parts.values(unit) for unit in UNITS] == [value(unit) for unit in UNITS]
    again = Parts(tmp_path, "samples", UNITS, settings="s")
    again.fill(lambda unit: pytest.fail("computed again"))
    assert contents(tmp_path) == whole
    remove_parts(tmp_path)
    remove_parts(tmp_path)
    assert not tmp_path.exists()
    with pytest.raises(SepoError, match="has disappeared; run the same command again"):
        again.values(UNITS[0])


def test_an_interrupted_run_has_the_bytes_of_an_undisturbed_one(tmp_path, whole):
    draw, interruptions = random.Random(5), 0
    while interruptions < 50:
        parts, left = Parts(tmp_path, "samples", UNITS, settings="s"), draw.randrange(3)

        def compute(unit):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return value(unit)

        try:
            parts.fill(compute)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert 1 < interruptions < 50
    assert contents(tmp_path) == whole


def _fill_and_die(folder, deaths):
    """Fill, and be killed while a file is being written: after its temporary file, before the rename."""
    replace = os.replace

    def killed(source, target):
        with deaths.get_lock():
            deaths.value -= 1
            if deaths.value == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killed
    Parts(folder, "samples", UNITS, settings="s").fill(value)


def test_a_process_that_is_killed_while_it_writes_leaves_no_partial_file(tmp_path, whole):
    context = multiprocessing.get_context("fork")
    for number in (1, 2, 3):
        deaths = context.Value("i", number)
        process = context.Process(target=_fill_and_die, args=(tmp_path, deaths))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(tmp_path.glob(".*.tmp"))
        assert contents(tmp_path).items() <= whole.items()
    Parts(tmp_path, "samples", UNITS, settings="s").fill(value)
    assert contents(tmp_path) == whole
    assert not list(tmp_path.glob(".*.tmp"))


def _fill(folder, barrier, computed):
    parts = Parts(folder, "samples", UNITS, settings="s")
    barrier.wait()

    def compute(unit):
        computed.put((os.getpid(), unit.index))
        return value(unit)

    parts.fill(compute, poll_seconds=0.01)
    assert not parts.missing()


def test_processes_share_the_units(tmp_path, whole):
    context = multiprocessing.get_context("fork")
    barrier, computed = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_fill, args=(tmp_path, barrier, computed)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [computed.get() for _ in UNITS]
    assert sorted(index for _, index in found) == list(range(len(UNITS)))
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("damage", [b"", b"{", b"[]\n", b'{"settings": "s", "samples": [[0, 0]], "values": [1]}\n'])
def test_a_damaged_file_is_computed_again(tmp_path, whole, damage):
    Parts(tmp_path, "samples", UNITS, settings="s").fill(value)
    (tmp_path / "samples-00002.json").write_bytes(damage)
    parts = Parts(tmp_path, "samples", UNITS, settings="s")
    assert parts.missing() == [UNITS[2]]
    parts.fill(value)
    assert contents(tmp_path) == whole


def test_results_of_other_settings_or_steps_are_not_used(tmp_path):
    Parts(tmp_path, "samples", UNITS, settings="s").fill(value)
    assert Parts(tmp_path, "samples", UNITS, settings="t").missing() == list(UNITS)
    assert Parts(tmp_path, "rewards", UNITS, settings="s").missing() == list(UNITS)


def test_results_that_were_used_up_are_not_computed_again(tmp_path):
    parts = Parts(tmp_path, "samples", UNITS, settings="s", obsolete=lambda: True)
    parts.fill(lambda unit: pytest.fail("computed"))
    assert parts.settled(UNITS[0], lambda unit: pytest.fail("computed"))
    assert not contents(tmp_path)


def test_a_number_that_is_not_finite_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Parts(tmp_path, "rewards", UNITS, settings="s").fill(lambda unit: [float("nan")] * len(unit.samples))
    assert not contents(tmp_path)


def test_a_full_disk_names_the_key(small_disk):
    mount, enlarge = small_disk
    folder = mount(64) / "parts"
    with pytest.raises(SepoError, match=r"No space left on device; free space or set another pairs_dir; fin"):
        Parts(folder, "samples", UNITS, settings="s").fill(lambda unit: [["x" * 9000]] * len(unit.samples))
    kept = contents(folder)
    enlarge(512)
    parts = Parts(folder, "samples", UNITS, settings="s")
    parts.fill(lambda unit: [["x" * 9000]] * len(unit.samples))
    assert kept.items() < contents(folder).items()
    assert json.loads(contents(folder)["samples-00000.json"])["settings"] == "s"
