"""The rules that the layout stands for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "plugin" / "sepo"
HOSTS = ("llamafactory", "axolotl")
COMMANDS = (
    "train", "score", "scores", "pipeline", "plan", "status", "report", "show", "credit", "eval", "bench", "webui",
    "enable", "disable", "doctor", "demo",
)  # fmt: skip
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path):
    """Top-level names of everything that a module imports, wherever in the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return names


def roots(path):
    return {name.split(".")[0] for name in imported(path)}


def inside(path, *folders):
    return path.relative_to(SOURCE).parts[0] in folders


@pytest.mark.parametrize("path", [p for p in MODULES if inside(p, "objectives", "tokens")], ids=lambda p: p.name)
def test_objectives_and_tokens_need_torch_and_the_standard_library_only(path):
    allowed = {"torch", "sepo", *sys.stdlib_module_names}
    if "store" in path.parts:
        allowed |= {"pyarrow", "filelock"}
    assert roots(path) <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if not inside(p, "hosts")], ids=lambda p: p.name)
def test_nothing_outside_hosts_imports_a_host(path):
    assert not roots(path) & set(HOSTS)


@pytest.mark.parametrize("path", [p for p in MODULES if inside(p, "hosts")], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_hosts_know_what_they_share_and_not_each_other(path):
    of = path.relative_to(SOURCE / "hosts").parts[0]
    others = [host for host in HOSTS if host != of]
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & set(others)
    assert not {name for name in names if name.startswith(tuple(f"sepo.hosts.{other}" for other in others))}


def test_every_host_is_looked_at():
    assert {p.name for p in (SOURCE / "hosts").iterdir() if (p / "__init__.py").is_file()} == {*HOSTS, "shared"}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if inside(p, "objectives", "tokens", "forward", "training")], ids=lambda p: p.name
)
def test_the_core_does_not_know_its_adapters(path):
    assert not {name for name in imported(path) if name.startswith(("sepo.hosts", "sepo.cli", "sepo.demo"))}


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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_nothing_is_unpickled_or_executed(path):
    tree = ast.parse(path.read_text())
    assert not roots(path) & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 60, node.name
