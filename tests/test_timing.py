"""Seconds of a command: imports by package apart from the steps in which they happen."""

import importlib
import sys
from importlib.machinery import ExtensionFileLoader, SourceFileLoader

import pytest

from sepo import timing as timings
from sepo.timing import Seconds, Timing


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that only the tested code moves, by ``clock.sleep``."""

    class Clock:
        now = 100.0

        def sleep(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(timings.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(timings.time, "process_time", lambda: made.now / 2)
    monkeypatch.setitem(sys.modules, "the_clock", made)
    return made


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Write a package that imports another one: 3 s of its own, 4 s of the other."""
    (tmp_path / "outer_one").mkdir()
    (tmp_path / "outer_one" / "__init__.py").write_text(
        "import the_clock\nthe_clock.sleep(1)\nimport inner_one\nimport outer_one.more\n"
    )
    (tmp_path / "outer_one" / "more.py").write_text("import the_clock\nthe_clock.sleep(2)\n")
    (tmp_path / "inner_one.py").write_text("import the_clock\nthe_clock.sleep(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("outer_one", "outer_one.more", "inner_one"):
        sys.modules.pop(name, None)


def test_imports_are_counted_by_package_and_not_as_work(clock, packages):
    timing = Timing()
    with timing.watching_imports():
        with timing.step("work"):
            clock.sleep(5)
            importlib.import_module("outer_one")
        with timing.step("work"):
            clock.sleep(10)
        clock.sleep(0.5)
    assert timing.imports == {"outer_one": Seconds(3, 1.5), "inner_one": Seconds(4, 2)}
    assert timing.steps == {"work": Seconds(15, 7.5)}
    assert timing.lines() == [
        "timing: 22.50 s (CPU 11.25 s); imports 7.00 s (CPU 3.50 s), own work 15.50 s (CPU 7.75 s)",
        "  imports: inner_one 4.00 s (CPU 2.00 s), outer_one 3.00 s (CPU 1.50 s)",
        "  own work: work 15.00 s (CPU 7.50 s), rest 0.50 s (CPU 0.25 s), modules of sepo 0.00 s (CPU 0.00 s)",
    ]


def test_a_failed_import_is_counted_and_the_loaders_are_restored(clock, packages, tmp_path):
    (tmp_path / "inner_one.py").write_text("import the_clock\nthe_clock.sleep(4)\nraise ValueError('half read')\n")
    before = [(kind, dict(vars(kind))) for kind in (SourceFileLoader, ExtensionFileLoader)]
    timing = Timing()
    with pytest.raises(ValueError, match="half read"), timing.watching_imports():
        importlib.import_module("outer_one")
    assert timing.imports == {"outer_one": Seconds(1, 0.5), "inner_one": Seconds(4, 2)}
    assert [(kind, dict(vars(kind))) for kind, _ in before] == before


def test_a_long_list_ends_with_the_sum_of_the_others(clock):
    timing = Timing()
    timing.imports = {f"package{number}": Seconds(number, number) for number in range(1, 15)}
    clock.sleep(105)
    assert timing.lines()[1].endswith(", package3 3.00 s (CPU 3.00 s), 2 others 3.00 s (CPU 3.00 s)")


def test_laps_follow_each_other(clock):
    timing = Timing()
    clock.sleep(2)
    timing.lap("rows")
    clock.sleep(3)
    timing.lap("policy")
    assert timing.laps == "rows 2.00 s (CPU 1.00 s), policy 3.00 s (CPU 1.50 s)"
