"""The pinned requirements of requirements/, as versions by name."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
# The environments, with the extras and groups that each is resolved from and the Pythons that it is made for.
ENVIRONMENTS = {
    "llamafactory.txt": (("llamafactory", "demo", "dev"), ("3.11", "3.12", "3.13")),
    "axolotl-0.19.txt": (("axolotl", "test"), ("3.11",)),
    "axolotl-0.21.txt": (("axolotl", "test"), ("3.12",)),
}
MADE_FOR = [(name, python) for name, (_, pythons) in ENVIRONMENTS.items() for python in pythons]
# Coupled by their binary interface: another patch release of one may not load beside the others.
COUPLED = ("torch", "torchvision", "torchaudio")


def entries(text: str) -> list[tuple[Requirement, list[str]]]:
    """Requirements of a lock in their order, each with its options (the hashes)."""
    joined = text.replace("\\\n", " ")
    lines = [line.split() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for words in lines:
        options = [word for word in words if word.startswith("--")]
        found.append((Requirement(" ".join(word for word in words if word not in options)), options))
    return found


def versions(text: str, *, python: str) -> dict[str, str]:
    """The version of each package that a lock has for a Python on Linux, by canonical name."""
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
    """What extras of pyproject.toml require, those of ours that they name included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            found += required(*sorted(requirement.extras)) if requirement.name == "sepo" else [requirement]
    return found
