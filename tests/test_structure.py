"""Imports of `sepo`; import-linter (pyproject.toml) enforces which package may import which."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "plugin" / "sepo"
COMMANDS = (
    "train", "score", "scores", "pipeline", "compare", "plan", "status", "report", "show", "credit", "eval", "sample",
    "bench", "webui", "enable", "disable", "doctor", "demo",
)  # fmt: skip


def imported(path):
    """Top-level packages of everything that a module imports, wherever in the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_objectives_and_selection_need_torch_and_the_standard_library_only():
    """An import contract can forbid packages, and not all but some."""
    modules = [path for folder in ("objectives", "selection") for path in (SOURCE / folder).rglob("*.py")]
    assert len(modules) > 20
    for path in modules:
        assert imported(path) <= {"torch", "sepo", *sys.stdlib_module_names}, path


def test_every_host_has_its_import_contracts():
    hosts = {p.name for p in (SOURCE / "hosts").iterdir() if (p / "__init__.py").is_file()}
    assert hosts == {"llamafactory", "axolotl"}


def test_importing_the_package_is_cheap():
    code = (
        "import sys, time; start = time.perf_counter(); import sepo; took = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules and took < 0.2, took"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom sepo.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for command in COMMANDS:
        assert command in done.stdout
