"""Installation by hand of packages with sepo's entry points: a module and its metadata in a directory on the path."""

import importlib
import sys
import tomllib
import zipfile
from contextlib import contextmanager
from pathlib import Path

from sepo.plugins import registered

EXAMPLE = Path(__file__).parents[2] / "yaml_examples" / "own_loss"
SCORER_EXAMPLE = EXAMPLE.with_name("own_scorer")
JUDGE_EXAMPLE = EXAMPLE.with_name("own_judge")
WEIGHT_EXAMPLE = EXAMPLE.with_name("own_weight")
WITH_RECIPES = (EXAMPLE, SCORER_EXAMPLE, WEIGHT_EXAMPLE)


def write_package(folder, name, groups, code=None):
    """Write the files of an installed package; ``groups`` is {"objectives": {"my_loss": "module:attribute"}, ...}."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[sepo.{group}]", *(f"{entry} = {target}" for entry, target in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    if code is not None:
        (folder / f"{name.replace('-', '_')}.py").write_text(code)
    return folder


def write_example(folder, example=EXAMPLE):
    """Write a package of yaml_examples/, from its own pyproject.toml and module."""
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    groups = {group.removeprefix("sepo."): entries for group, entries in project["entry-points"].items()}
    return write_package(folder, project["name"], groups, (example / f"{example.name}.py").read_text())


def example_wheel(folder, example=EXAMPLE):
    """Build the wheel of an example by hand, which pip installs without a build backend (or a network)."""
    site = write_example(folder / "site", example)
    (info,) = site.glob("*.dist-info")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file())
    record = f"{info.name}/RECORD"
    (site / record).write_text("".join(f"{file},,\n" for file in [*files, record]))
    wheel = folder / f"{info.name.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in [*files, record]:
            archive.write(site / file, file)
    return wheel


@contextmanager
def on_path(folder):
    """Make the packages of a directory importable inside the context."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    registered.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        registered.cache_clear()
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
