"""`sepo report`: default output paths, and files that are never overwritten."""

import sys
import types
from pathlib import Path

import pytest

from sepo.cli import main
from sepo.report.page import PAGE_MARK
from tests.support.subjects import demo_subject


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory; every path is read as a small subject, of the kind that its name begins with."""

    def read_subject(path, *, name):
        kind = "store" if name.startswith(("store", "0123")) else "run"
        return demo_subject(name=name, path=path, kind=kind, rows=2, log=[], missing=["No log was found."])

    monkeypatch.setitem(sys.modules, "sepo.report.reading", types.SimpleNamespace(read_subject=read_subject))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path


def test_a_runs_report_is_in_its_directory(place, capsys):
    assert main(["report", "run"]) == 0
    assert PAGE_MARK in (place / "run" / "report.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "missing in run: No log was found." in printed
    assert "written: run/report.html (0.1 MB, 2 of 4 rows)" in printed


def test_reports_of_a_store_and_of_several_subjects_are_in_the_working_directory(place):
    assert main(["report", "store of <mine>"]) == 0
    assert (place / "store-of-mine-report.html").is_file()
    assert main(["report", "run", "store"]) == 0
    assert main(["report", 2 * "0123456789abcdef"]) == 0
    reports = ["0123456789ab-report.html", "report.html", "run", "store-of-mine-report.html"]
    assert sorted(path.name for path in place.iterdir()) == reports


def test_a_report_is_replaced_and_anything_else_is_not(place, capsys):
    assert main(["report", "run", "-o", "page.html"]) == 0
    (place / "page.html").write_text(PAGE_MARK)
    assert main(["report", "run", "-o", "page.html"]) == 0
    assert len((place / "page.html").read_text()) > 1000
    (place / "page.html").write_text("my own page")
    assert main(["report", "run", "-o", "page.html"]) == 2
    assert "is not a sepo report" in capsys.readouterr().err
    assert (place / "page.html").read_text() == "my own page"
    assert main(["report", "run", "-o", "page.html", "--force"]) == 0
    assert PAGE_MARK in (place / "page.html").read_text()


def test_every_chart_is_a_figure_and_foreign_files_stay(place, capsys):
    assert main(["report", "run", "--figures", "deep/figures"]) == 0
    figures = place / "deep" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == ["accumulation.png", "distribution.png"]
    assert (figures / "accumulation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["report", "run", "--figures", "deep/figures"]) == 0
    (figures / "accumulation.png").write_bytes(b"mine")
    assert main(["report", "run", "--figures", "deep/figures"]) == 2
    assert "accumulation.png exists and is not a sepo report" in capsys.readouterr().err
    assert (figures / "accumulation.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "-o", "nowhere/page.html"], "nowhere does not exist"),
        (["run", "-o", "run"], "is a directory"),
        (["run"] * 7, "expected at most 6"),
        (["run", "--figures", "file/x"], "cannot create the directory"),
    ],
)
def test_unwritable_outputs_are_errors(place, capsys, words, message):
    Path("file").write_text("")
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(place.rglob("*.html")) + list(place.rglob("*.tmp"))
