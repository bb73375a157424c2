"""Parsing of the pinned requirements in requirements/."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
# The environments, with the extras and groups that each is resolved from, and its Python versions.
ENVIRONMENTS = {
    "llamafactory.txt": (("llamafactory", "demo", "dev"), ("3.11", "3.12", "3.13")),
    "axolotl-0.19.txt": (("axolotl", "test"), ("3.11",)),
    "axolotl-0.21.txt": (("axolotl", "test"), ("3.12",)),
}
# Locks of a file `NAME.in`, with the extras that they satisfy in addition.
OF_FILES: dict[str, tuple[str, ...]] = {
    "llamafactory-0.9.4.txt": ("host", "test"), "contract-0.9.4.txt": (), "contract-axolotl-0.21.txt": (),
    "transformers-5.8.txt": (), "trl-1.16.txt": (),
    "demo-model.txt": (),
}  # fmt: skip
MADE_FOR = [(name, python) for name, (_, pythons) in ENVIRONMENTS.items() for python in pythons]
# Coupled by their binary interface: another patch release of one may not load with the others.
COUPLED = ("torch", "torchvision", "torchaudio")


def entries(text: str) -> list[tuple[Requirement, list[str]]]:
    """Return the requirements of a lock in their order, each with its options (the hashes)."""
    joined = text.replace("\\\n", " ")
    lines = [line.split() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for words in lines:
        options = [word for word in words if word.startswith("--")]
        found.append((Requirement(" ".join(word for word in words if word not in options)), options))
    return found


def versions(text: str, *, python: str) -> dict[str, str]:
    """Return the versions in a lock for a Python version on Linux, by canonical package name."""
    where = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement, _ in entries(text)
        if requirement.marker is None or requirement.marker.evaluate(where)
    }


def required(*extras: str) -> list[Requirement]:
    """Return the requirements of extras of pyproject.toml, including those of the extras that they name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            found += required(*sorted(requirement.extras)) if requirement.name == "sepo" else [requirement]
    return found
