"""What is installed around this package: the host, what an extra requires, what does not load, and what repairs it.

Nothing here imports a host or torch: what may not load is loaded in a process of its own, since a broken native
library can end the interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

DISTRIBUTION = "sepo"

LOADED = (
    "numpy", "torch", "torchvision", "torchaudio", "transformers", "accelerate", "peft", "datasets", "trl",
    "bitsandbytes", "deepspeed",
)  # fmt: skip
"""Packages that are loaded rather than looked up by version, each after those that it builds on."""

_MARK = "sepo-loaded:"
_LOADER = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        while error.__cause__ is not None:
            error = error.__cause__
        line = (str(error).strip().splitlines() or ["no message"])[0]
        print("\\n{_MARK}", json.dumps([name, f"{{type(error).__name__}}: {{line}}"]), flush=True)
        break
    print("\\n{_MARK}", json.dumps([name, None]), flush=True)
"""


@dataclass(frozen=True)
class Host:
    """A framework that runs the stages of this package.

    Args:
        title: as its documentation spells it.
        name: of its package, and of the extra that installs it.
    """

    title: str
    name: str


LLAMAFACTORY = Host("LLaMA-Factory", "llamafactory")
AXOLOTL = Host("Axolotl", "axolotl")
HOSTS = (LLAMAFACTORY, AXOLOTL)


def installed_hosts() -> tuple[Host, ...]:
    """Return the hosts of this environment; none of them is imported."""
    return tuple(host for host in HOSTS if is_installed(host.name))


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found; a folder without code (a clone's, say) is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def requirements(extra: str) -> dict[str, Requirement]:
    """Read what an extra requires, as the installed distribution records it.

    Args:
        extra: its name; extras that it includes are expanded.

    Returns:
        One requirement for each package, by its normalized name; empty where the package is not installed, but on the
        path.
    """
    return _merged(_included(extra, _recorded(DISTRIBUTION)))


def _recorded(distribution: str) -> list[Requirement]:
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    from packaging.requirements import Requirement

    return [Requirement(line) for line in lines]


def _included(extra: str, recorded: Sequence[Requirement]) -> Iterator[Requirement]:
    from packaging.utils import canonicalize_name

    for requirement in recorded:
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        if canonicalize_name(requirement.name) != DISTRIBUTION:
            yield requirement
            continue
        for included in requirement.extras - {extra}:
            yield from _included(included, recorded)


def _merged(found: Iterable[Requirement]) -> dict[str, Requirement]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    specifiers: dict[str, SpecifierSet] = {}
    for requirement in found:
        name = canonicalize_name(requirement.name)
        specifiers[name] = specifiers[name] & requirement.specifier if name in specifiers else requirement.specifier
    return {name: Requirement(name + _narrowest(specifier)) for name, specifier in sorted(specifiers.items())}


def _narrowest(specifier: SpecifierSet) -> str:
    """Write a set of specifiers without those that another one implies: a pin alone, one lower bound."""
    from packaging.version import Version

    parts = sorted(specifier, key=str)
    pins = [part for part in parts if part.operator == "==" and not part.version.endswith(".*")]
    if pins:
        return ",".join(map(str, pins))
    lower = sorted((part for part in parts if part.operator == ">="), key=lambda part: Version(part.version))
    return ",".join(str(part) for part in (*lower[-1:], *(part for part in parts if part.operator != ">=")))


def install_command(*extras: str) -> str:
    """Write the pip command that installs extras of this package, from where it was itself installed.

    Args:
        *extras: their names.
    """
    names = ",".join(extras)
    source = _source(names)
    if source is not None:
        return f"pip install {source}"
    found = _merged(requirement for extra in extras for requirement in requirements(extra).values())
    if found:
        return pip_install(found.values())
    return f"pip install 'PATH_OF_SEPO[{names}]' (the wheel or the clone that this package comes from)"


def _source(extras: str) -> str | None:
    """Write for pip what the package was installed from, with extras; None where that is not known.

    A direct URL is recorded by the installer (PEP 610); a package that is only on the path lies in its clone.
    """
    try:
        recorded = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        clone = Path(__file__).absolute().parents[2]
        return shlex.quote(f"{clone}[{extras}]") if (clone / "pyproject.toml").is_file() else None
    if recorded is None:
        return None
    direct: dict[str, Any] = json.loads(recorded)
    parsed = urlparse(direct["url"])
    if parsed.scheme == "file":
        path = Path(url2pathname(parsed.path))
        editable = "-e " if direct.get("dir_info", {}).get("editable") else ""
        return editable + shlex.quote(f"{path}[{extras}]") if path.exists() else None
    vcs = direct.get("vcs_info")
    url = direct["url"] if vcs is None else f"{vcs['vcs']}+{direct['url']}@{vcs['commit_id']}"
    folder = f"#subdirectory={direct['subdirectory']}" if "subdirectory" in direct else ""
    return shlex.quote(f"{DISTRIBUTION}[{extras}] @ {url}{folder}")


def pip_install(wanted: Iterable[Requirement], *, again: bool = False) -> str:
    """Write a pip command.

    Args:
        wanted: what it installs.
        again: install what is there in that version already, and nothing beside it.
    """
    options = "--force-reinstall --no-deps " if again else ""
    return f"pip install {options}{' '.join(shlex.quote(str(requirement)) for requirement in wanted)}"


@dataclass(frozen=True)
class Package:
    """A package of this environment.

    Args:
        name: the distribution's, normalized.
        version: the installed one; None where it is not installed.
        expected: what the host's extra requires, or None where it requires nothing of this package.
        failure: why it does not load; None where it does, or was not loaded.
        loaded: whether it was loaded.
    """

    name: str
    version: str | None
    expected: Requirement | None = None
    failure: str | None = None
    loaded: bool = False

    @property
    def fits(self) -> bool:
        """Whether the installed version is one that the extra allows."""
        if self.expected is None:
            return True
        return self.version is not None and self.expected.specifier.contains(self.version, prereleases=True)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.fits and self.failure is None

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name} is not installed"
        named = f"{self.name} {self.version}"
        outside = "" if self.fits or self.expected is None else f"is outside {self.expected.specifier}"
        if self.failure is None:
            return f"{named} {outside}" if outside else f"{named}, loads" if self.loaded else named
        return f"{named} {outside + ' and ' if outside else ''}does not load ({self.failure})"


def packages(host: Host) -> list[Package]:
    """Look up what a host's extra requires, and load what may not load.

    Args:
        host: one that is installed.

    Returns:
        Every package of the extra, each once, and those of ``LOADED`` that are there.
    """
    expected = requirements(host.name)
    there = [name for name in LOADED if is_installed(name)]
    failures = load_failures(there)
    names = dict.fromkeys([host.name, *expected, *there])
    return [
        Package(name, _version(name), expected.get(name), failures.get(name), name in there and name not in failures)
        for name in names
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def load_failures(names: Sequence[str]) -> dict[str, str]:
    """Import modules in a process of its own, and in a new one after each that fails.

    Args:
        names: modules, each after those that it builds on.

    Returns:
        The first line of the reason, by module, for those that fail.
    """
    failures: dict[str, str] = {}
    left = list(names)
    while left:
        # -P: the folder that this runs in is no place to import from
        command = [sys.executable, "-P", "-W", "ignore", "-c", _LOADER, *left]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
        results = [json.loads(line.removeprefix(_MARK)) for line in lines]
        if len(results) < len(left) and not (results and results[-1][1]):
            results.append([left[len(results)], _death(done.returncode)])
        for name, reason in results:
            if reason is not None:
                failures[name] = reason
        left = left[len(results) :]
    return failures


def _death(status: int) -> str:
    if status < 0:
        return f"the interpreter is killed by {signal.Signals(-status).name}"
    return f"the interpreter ends with status {status}"


def what_is_wrong(host: Host, wrong: Sequence[Package]) -> str:
    """Write in one line what is wrong with packages, and the command that repairs all of them.

    Args:
        host: whose extra they belong to.
        wrong: some that are not sound.
    """
    causes = _causes(wrong)
    return f"{'; '.join(map(str, causes))}; run: {_repair(host, causes)}"


def _causes(wrong: Sequence[Package]) -> list[Package]:
    """Leave out packages that fail for the reason of one that they build on, and for no other."""
    places = {name: place for place, name in enumerate(LOADED)}
    kept: dict[str, Package] = {}
    for package in sorted(wrong, key=lambda item: places.get(item.name, len(places))):
        if package.failure is None or not package.fits or package.failure not in {p.failure for p in kept.values()}:
            kept[package.name] = package
    return list(kept.values())


def _repair(host: Host, wrong: Sequence[Package]) -> str:
    """The command; packages that the extra pins to one version each are coupled, and come together.

    What the extra does not name is taken from the host's own pins. Where neither has a package, the extra is installed.
    """
    recorded = requirements(host.name)
    pins = {name: item for name, item in recorded.items() if _is_pin(item)}
    known = {**_host_pins(host), **recorded} if recorded else {}
    wanted: dict[str, Requirement] = {}
    for package in wrong:
        if package.name not in known:
            return install_command(host.name)
        wanted |= pins if package.name in pins else {package.name: known[package.name]}
    again = all(item.specifier.contains(_version(name) or "0", prereleases=True) for name, item in wanted.items())
    return pip_install(wanted.values(), again=again)


def _host_pins(host: Host) -> dict[str, Requirement]:
    here = (item for item in _recorded(host.name) if item.marker is None or item.marker.evaluate({"extra": ""}))
    return {name: item for name, item in _merged(here).items() if _is_pin(item)}


def _is_pin(requirement: Requirement) -> bool:
    return [part.operator for part in requirement.specifier] == ["=="]
