"""`sepo doctor`: report which host is installed, what is wrong with its environment, and how to repair it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sepo
from sepo.errors import SepoError
from sepo.hosts.contract import Finding
from sepo.installation import (
    AXOLOTL,
    HOSTS,
    LLAMAFACTORY,
    Host,
    Package,
    install_command,
    installed_hosts,
    is_installed,
    load_failures,
    packages,
    requirements,
    to_load,
    what_is_untested,
    what_is_wrong,
)
from sepo.plugins import GROUPS, registered
from sepo.timing import Seconds, Timing

_BOOT = """
import json, sys
given = json.loads(sys.argv[1])
sys.path.append(given["own"])
from sepo.cli.doctor import report_after_loading
from sepo.cli.ending import QuickEnd
ending = QuickEnd()
ending.status = report_after_loading(given)
sys.exit(ending.status)
"""
_FIRST = {LLAMAFACTORY: "llamafactory.hparams", AXOLOTL: "axolotl"}
"""Module of a host that is imported before the packages under it: LLaMA-Factory changes how TRL finds its own optional
packages, and TRL's trainers cannot be imported otherwise."""
_LOADED = "sepo: all packages are loaded"
"""Line of the process of the report; what it prints before, packages print when they are imported."""


def run_doctor(options: argparse.Namespace) -> int:
    """Print the report of the environment.

    Returns:
        0 if nothing is wrong, else 1.
    """
    start = Seconds.now()
    print(
        f"sepo {sepo.__version__} in {Path(sepo.__file__).parents[1]}, Python {sys.version.split()[0]} ({sys.prefix})"
    )
    hosts = installed_hosts()
    good = _section("host", _hosts(hosts))
    status = _reported_by_process(hosts, good=good, start=start if options.timing else None)
    if status is not None:
        return status
    # A package is absent, does not load, or ends the interpreter: which, and why.
    status = _report(hosts, good=good, failures=None, timing=Timing(start))
    if options.timing:
        print("timing: seconds are counted if all packages load")
    return status


def _reported_by_process(hosts: Sequence[Host], *, good: bool, start: Seconds | None) -> int | None:
    """Import all packages in a process of their own, which then prints the report, as an import may end the process.

    Args:
        hosts: the installed hosts.
        good: whether nothing is wrong so far.
        start: when the command started, if seconds are to be printed; else None.

    Returns:
        The exit status; None, with nothing printed, if a package is missing or fails to load.
    """
    if not is_installed("torch"):
        return None
    given = {
        "own": str(Path(sepo.__file__).parents[1]),
        "path": sys.path,
        "hosts": [host.name for host in hosts],
        "good": good,
        "start": None if start is None else start.clock,
    }
    command = [sys.executable, "-P", "-c", _BOOT, json.dumps(given)]  # -P: do not import from the working directory
    loaded = False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if loaded:
                print(line, end="", flush=True)
            loaded = loaded or line.rstrip() == _LOADED
    if not loaded:
        return None
    if process.returncode not in (0, 1):
        print(f"something is wrong: the process of these checks ended with status {process.returncode}")
    return 0 if process.returncode == 0 else 1


def report_after_loading(given: Mapping[str, Any]) -> int:
    """Import all packages and print the report, in the process that ``run_doctor`` starts.

    Returns:
        The exit status; 1 before any line is printed if a package does not load.
    """
    hosts = [host for host in HOSTS if host.name in given["hosts"]]
    timing = Timing(None if given["start"] is None else Seconds(given["start"]))
    with timing.watching_imports() if given["start"] is not None else contextlib.nullcontext():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in [*(_FIRST[host] for host in hosts), *to_load()] if hosts else ["torch"]:
                try:
                    importlib.import_module(name)
                except BaseException:  # incompatible packages raise exceptions of any type; the caller reports them
                    return 1
        print(f"\n{_LOADED}", flush=True)
        sys.path[:], sys.argv = given["path"], ["sepo", "doctor"]
        status = _report(hosts, good=given["good"], failures={}, timing=timing)
    if given["start"] is not None:
        print(*timing.lines(), sep="\n")
    return status


def _report(hosts: Sequence[Host], *, good: bool, failures: Mapping[str, str] | None, timing: Timing) -> int:
    """Print all sections after that of the hosts, and the verdict.

    Args:
        hosts: the installed hosts.
        good: whether nothing is wrong so far.
        failures: packages that do not load; None to import them for this, in other processes.
        timing: counts the seconds of the sections.

    Returns:
        The exit status.
    """
    loads = is_installed("torch") and (bool(hosts) or failures is not None or not load_failures(["torch"]))
    with timing.step("packages"):
        for host in hosts:
            found = packages(host, failures)
            good &= _section(f"packages of {host.title}", _packages(host, found))
            loads &= all(
                package.failure is None and not (package.needed and package.version is None) for package in found
            )
    if not loads:
        print("something is wrong: see WRONG above; nothing else is checked until all packages are there and load")
        return 1
    with timing.step("devices"):
        good &= _section("devices", _devices())
    for host in hosts:
        for title, findings in _host_sections(host):
            with timing.step(title):
                good &= _section(title, findings)
    with timing.step("registered"):
        good &= _section("registered by other packages", registered_findings(_known_keys(hosts)))
    print("nothing is wrong" if good else "something is wrong: see WRONG above")
    return 0 if good else 1


def _section(title: str, findings: Iterable[Finding]) -> bool:
    print(title)
    good = True
    for finding in findings:
        label = "WRONG" if not finding.good else "note " if finding.note else "ok   "
        print(f"  {label} {finding.text}", flush=True)
        good = good and finding.good
    return good


def _hosts(hosts: Sequence[Host]) -> Iterator[Finding]:
    if len(hosts) == len(HOSTS):
        titles = " and ".join(host.title for host in hosts)
        yield Finding(
            False,
            f"{titles} are both installed, and need different versions of the same packages; make an environment for "
            "each (docs/axolotl.md#install)",
        )
    for host in hosts:
        yield Finding(True, f"{host.title}: {_USE[host]}")
    if not hosts:
        commands = "; or, ".join(f"for {host.title}, run: {install_command(host.name)}" for host in HOSTS)
        yield Finding(False, f"no host is installed; {commands}")


_USE = {
    LLAMAFACTORY: "all commands",
    AXOLOTL: "axolotl train config.yaml; which of the commands here need no other host is in docs/axolotl.md#commands",
}


def _packages(host: Host, found: Sequence[Package]) -> Iterator[Finding]:
    wrong = [package for package in found if not package.sound]
    untested = [package for package in found if package.sound and not package.fits]
    yield from (Finding(True, str(package), note=package in untested) for package in found if package.sound)
    if not requirements(host.name):
        yield Finding(True, "versions are not compared: sepo is on the path but not installed, so none are recorded")
    if any(package.version is not None for package in untested):
        yield Finding(True, what_is_untested(host, untested), note=True)
    if wrong:
        yield Finding(False, what_is_wrong(host, wrong))


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(True, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield Finding(True, f"no GPU; {os.cpu_count()} CPU cores")


def _host_sections(host: Host) -> Iterator[tuple[str, Iterable[Finding]]]:
    if host == LLAMAFACTORY:
        from sepo.hosts.llamafactory import doctor as llamafactory

        yield f"what is relied on in {host.title}", llamafactory.contract_findings()
        yield "activation", llamafactory.activation_findings()
    else:
        from sepo.hosts.axolotl import doctor as axolotl

        yield f"what is relied on in {host.title}", axolotl.contract_findings()
        yield "plugin", axolotl.plugin_findings()


def _known_keys(hosts: Sequence[Host]) -> tuple[str, ...]:
    """Return the recipe keys of the hosts; none for a host that cannot be imported, as its own section reports that."""
    keys: list[str] = []
    for host in hosts:
        try:
            if host == LLAMAFACTORY:
                from sepo.hosts.llamafactory.recipe import host_keys

                keys += host_keys()
            else:
                from sepo.hosts.axolotl.block import BLOCK_KEYS

                keys += BLOCK_KEYS
        except (ImportError, RuntimeError, OSError):
            continue
    return tuple(keys)


def registered_findings(host_keys: tuple[str, ...]) -> Iterator[Finding]:
    """Load what other packages register and resolve each entry with its defaults.

    Args:
        host_keys: recipe keys that no registered objective or token weight may take.
    """
    from sepo.recipe.stages import check_registered

    items = [item for kind in GROUPS for item in registered(kind)]
    if not items:
        yield Finding(True, "nothing: every objective, token scorer, token weight, stage and judge is sepo's own")
    for item in items:
        try:
            check_registered(item, host_keys=host_keys)
        except SepoError as error:
            yield Finding(False, str(error))
        else:
            yield Finding(True, str(item))
