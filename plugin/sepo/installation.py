"""Inspection of the environment: installed hosts, requirements of an extra, packages that do not load, and repairs.

Nothing here imports a host or torch: packages that may fail to load are imported in a subprocess, since a broken native
library can crash the interpreter.
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
"""Packages that are imported in addition to the check of their version, each after its dependencies."""

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
        title: name as its documentation spells it.
        name: name of its package and of the extra that installs it.
    """

    title: str
    name: str


LLAMAFACTORY = Host("LLaMA-Factory", "llamafactory")
AXOLOTL = Host("Axolotl", "axolotl")
HOSTS = (LLAMAFACTORY, AXOLOTL)


def installed_hosts() -> tuple[Host, ...]:
    """Return the hosts that are installed in this environment, without importing them."""
    return tuple(host for host in HOSTS if is_installed(host.name))


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found; a directory without code, such as that of a clone, is not one."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def requirements(extra: str) -> dict[str, Requirement]:
    """Read the requirements of an extra from the metadata of the installed distribution.

    Args:
        extra: name of the extra; extras that it includes are expanded.

    Returns:
        One requirement per package, by normalized name; empty if sepo is not installed but only on the path.
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
    """Format a set of specifiers without redundant ones: only the pins if there are any, and one lower bound."""
    from packaging.version import Version

    parts = sorted(specifier, key=str)
    pins = [part for part in parts if part.operator == "==" and not part.version.endswith(".*")]
    if pins:
        return ",".join(map(str, pins))
    lower = sorted((part for part in parts if part.operator == ">="), key=lambda part: Version(part.version))
    return ",".join(str(part) for part in (*lower[-1:], *(part for part in parts if part.operator != ">=")))


def install_command(*extras: str) -> str:
    """Return the pip command that installs extras of this package, from the source that it was installed from.

    Args:
        *extras: names of the extras.
    """
    names = ",".join(extras)
    source = _source(names)
    if source is not None:
        return f"pip install {source}"
    found = _merged(requirement for extra in extras for requirement in requirements(extra).values())
    if found:
        return pip_install(found.values())
    return f"pip install 'PATH_OF_SEPO[{names}]' (the wheel or clone that this package was installed from)"


def _source(extras: str) -> str | None:
    """Return the pip requirement for the source of this installation, with extras; None if the source is unknown.

    The installer records a direct URL (PEP 610); a package that is only on the path lies in its clone.
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
    """Return a pip install command.

    Args:
        wanted: the requirements to install.
        again: whether to reinstall versions that are already installed, without dependencies.
    """
    options = "--force-reinstall --no-deps " if again else ""
    return f"pip install {options}{' '.join(shlex.quote(str(requirement)) for requirement in wanted)}"


@dataclass(frozen=True)
class Package:
    """A package of this environment.

    Args:
        name: normalized name of the distribution.
        version: the installed version; None if it is not installed.
        expected: requirement of the host's extra, or None if it has none for this package.
        failure: reason why the package does not load; None if it loads or was not imported.
        loaded: whether it was imported successfully.
    """

    name: str
    version: str | None
    expected: Requirement | None = None
    failure: str | None = None
    loaded: bool = False

    @property
    def fits(self) -> bool:
        """Whether the extra allows the installed version."""
        if self.expected is None:
            return True
        return self.version is not None and self.expected.specifier.contains(self.version, prereleases=True)

    @property
    def sound(self) -> bool:
        """Whether the version fits and the package does not fail to load."""
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
    """Check the versions of a host's extra, and import the packages of ``LOADED``.

    Args:
        host: an installed host.

    Returns:
        Every package of the extra, and those of ``LOADED`` that are installed, each once.
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
    """Import modules in a subprocess, and in a new one after each failure.

    Args:
        names: modules, each after its dependencies.

    Returns:
        The first line of the error by module, for modules that fail to import.
    """
    failures: dict[str, str] = {}
    left = list(names)
    while left:
        # -P: do not import from the working directory
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
    """Describe broken packages in one line, with the command that repairs all of them.

    Args:
        host: host whose extra they belong to.
        wrong: packages that are not sound.
    """
    causes = _causes(wrong)
    return f"{'; '.join(map(str, causes))}; run: {_repair(host, causes)}"


def _causes(wrong: Sequence[Package]) -> list[Package]:
    """Remove packages that only fail with the same error as one of their dependencies."""
    places = {name: place for place, name in enumerate(LOADED)}
    kept: dict[str, Package] = {}
    for package in sorted(wrong, key=lambda item: places.get(item.name, len(places))):
        if package.failure is None or not package.fits or package.failure not in {p.failure for p in kept.values()}:
            kept[package.name] = package
    return list(kept.values())


def _repair(host: Host, wrong: Sequence[Package]) -> str:
    """Return the repair command; packages that the extra pins are coupled and are installed together.

    Packages without a requirement in the extra are installed at the host's own pins. If neither has a package, the
    extra is installed.
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
