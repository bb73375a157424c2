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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        tested: sets of versions that were run beside those of the extra: specifiers by package, the host's among
            them. Packages that a set does not name are those of the extra.
    """

    title: str
    name: str
    tested: tuple[Mapping[str, str], ...] = field(default=(), hash=False, compare=False)


LLAMAFACTORY = Host(
    "LLaMA-Factory",
    "llamafactory",
    tested=(
        {
            "llamafactory": "==0.9.4", "torch": "==2.9.1", "torchvision": "==0.24.1", "torchaudio": "==2.9.1",
            "transformers": "==4.57.1", "peft": "==0.17.1", "deepspeed": "==0.16.9",
        },
        {"llamafactory": "==0.9.6.dev0"},
        {"llamafactory": "==0.9.6.dev0", "transformers": "==5.8.0"},
    ),
)  # fmt: skip
AXOLOTL = Host("Axolotl", "axolotl")
HOSTS = (LLAMAFACTORY, AXOLOTL)


def installed_hosts() -> tuple[Host, ...]:
    """Return the hosts that are installed in this environment, without importing them."""
    return tuple(host for host in HOSTS if is_installed(host.name))


def tested(host: Host) -> dict[str, tuple[Requirement, ...]]:
    """Return the requirements that were tested with the installed version of a host, by package, the first set's first.

    If this version of the host was not tested, these are the requirements of the extra.

    Args:
        host: an installed host.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    extra = requirements(host.name)
    released, version = extra.get(host.name), _version(host.name)
    if released is None or version is None or _allows(released, version):
        return {name: (requirement,) for name, requirement in extra.items()}
    sets = [own for own in host.tested if SpecifierSet(own[host.name]).contains(version, prereleases=True)]
    return {
        name: tuple(
            dict.fromkeys(Requirement(name + own[name]) if name in own else extra[name] for own in sets or [{}])
        )
        for name in extra
    }


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
        tested: requirements that were run with this version of the host; empty if none is known.
        failure: reason why the package does not load; None if it loads or was not imported.
        loaded: whether it was imported successfully.
        needed: what sepo or the host cannot work without, with sepo's bounds; None for an optional package.
    """

    name: str
    version: str | None
    tested: tuple[Requirement, ...] = ()
    failure: str | None = None
    loaded: bool = False
    needed: Requirement | None = None

    @property
    def fits(self) -> bool:
        """Whether the installed version was tested, or no tested one is known."""
        return not self.tested or any(_allows(requirement, self.version) for requirement in self.tested)

    @property
    def sound(self) -> bool:
        """Whether the package does not fail to load and sepo's bounds allow its version."""
        return self.failure is None and (self.needed is None or _allows(self.needed, self.version))

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name} is not installed"
        named = f"{self.name} {self.version}"
        if not self.sound:
            bounds = self.tested[0] if self.tested else self.needed
            outside = "" if bounds is None or _allows(bounds, self.version) else f" is outside {bounds.specifier}"
            failed = f" does not load ({self.failure})" if self.failure else ""
            return f"{named}{outside}{' and' if outside and failed else ''}{failed}"
        known = ", tested" if self.fits else ", not tested"
        return f"{named}{known if self.tested else ''}{', loads' if self.loaded else ''}"


def _allows(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def to_load() -> list[str]:
    """Return the packages of ``LOADED`` that are installed."""
    return [name for name in LOADED if is_installed(name)]


def packages(host: Host, failures: Mapping[str, str] | None = None) -> list[Package]:
    """Check the versions of a host's extra, and that the packages of ``LOADED`` can be imported.

    Args:
        host: an installed host.
        failures: from ``load_failures(to_load())``; None to import them for this.

    Returns:
        Every package of the extra, and those of ``LOADED`` that are installed, each once.
    """
    known, needed = tested(host), _needed(host)
    there = to_load()
    if failures is None:
        failures = load_failures(there)
    names = dict.fromkeys([host.name, *known, *there])
    return [
        Package(
            name,
            _version(name),
            known.get(name, ()),
            failures.get(name),
            loaded=name in there and name not in failures,
            needed=needed.get(name),
        )
        for name in names
    ]


def _needed(host: Host) -> dict[str, Requirement]:
    """Return what the environment of a host cannot lack: sepo's own requirements, and the host's packages unbounded."""
    from packaging.requirements import Requirement

    names = [host.name, *_merged(_unconditional(host.name))]
    return {name: Requirement(name) for name in names} | _merged(_unconditional(DISTRIBUTION)) | requirements("host")


def _unconditional(distribution: str) -> Iterator[Requirement]:
    """Yield the requirements of a distribution without extras."""
    for requirement in _recorded(distribution):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


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


def what_is_untested(host: Host, untested: Sequence[Package]) -> str:
    """Describe sound packages in versions that were not tested in one line, with the command that installs tested ones.

    Args:
        host: host that they were not tested with.
        untested: sound packages that do not fit.
    """
    there = [package for package in untested if package.version is not None]
    named = ", ".join(f"{package.name} {package.version}" for package in there)
    return (
        f"{named}: not tested with sepo and {host.title} {_version(host.name)}; if runs fail, use tested versions: "
        f"{_repair(host, there)}"
    )


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
    recorded = {name: items[0] for name, items in tested(host).items()}
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
    return {name: item for name, item in _merged(_unconditional(host.name)).items() if _is_pin(item)}


def _is_pin(requirement: Requirement) -> bool:
    return [part.operator for part in requirement.specifier] == ["=="]
