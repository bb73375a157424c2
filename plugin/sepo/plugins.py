"""What other packages register with us by entry points: objectives, token scorers and stages, by name.

Finding names imports nobody's code and no torch; an entry point is loaded when a recipe or a call uses its name, so
that a broken package troubles only those who ask for it. ``sepo doctor`` loads all of them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

from sepo.errors import SepoError

Kind = Literal["objective", "token_scorer", "stage"]

STORED_SCORERS = "sepo.scorers"
"""The entry-point group of token scorers whose scores a store keeps."""

GROUPS: dict[Kind, tuple[str, ...]] = {
    "objective": ("sepo.objectives",),
    "token_scorer": ("sepo.selectors", STORED_SCORERS),
    "stage": ("sepo.stages",),
}
"""The entry-point groups of each kind, as a package's pyproject.toml names them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """One entry point of another package.

    Attributes:
        kind: ``objective``, ``token_scorer`` or ``stage``.
        name: what a recipe writes.
        package: the distribution and its version.
        entry: the entry point itself.
        group: the entry-point group that it is in.
    """

    kind: Kind
    name: str
    package: str
    entry: EntryPoint
    group: str

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' of package {self.package} ({self.entry.value})"


@cache
def registered(kind: Kind) -> tuple[Registered, ...]:
    """Everything that is registered under a kind, ordered by name and package; looked for once per process."""
    found = [
        Registered(
            kind, entry.name, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "(unnamed)", entry, group
        )
        for group in GROUPS[kind]
        for entry in entry_points(group=group)
    ]
    return tuple(sorted(found, key=lambda item: (item.name, item.package)))


def names(kind: Kind, *, built_in: Container[str]) -> tuple[str, ...]:
    """The registered names of a kind that are not built in, each once."""
    return tuple(dict.fromkeys(item.name for item in registered(kind) if item.name not in built_in))


def find(kind: Kind, name: str, *, built_in: Container[str]) -> Registered | None:
    """Return who registers a name, or None where nobody does.

    Args:
        kind: what the name is of.
        name: as a recipe writes it.
        built_in: the names that are not to be had.

    Raises:
        SepoError: two packages register the name, it is built in too, or it can be no part of a key.
    """
    owners = [item for item in registered(kind) if item.name == name]
    if not owners:
        return None
    group = " and ".join(dict.fromkeys(item.group for item in owners))
    if name in built_in:
        raise SepoError(
            f"{kind} '{name}' is built in, and package {owners[0].package} registers it too ({group}: "
            f"{owners[0].entry.value}), expected one owner of a name: uninstall that package, or have it rename its "
            "entry point."
        )
    if len(owners) > 1:
        packages = " and ".join(f"{item.package} ({item.entry.value})" for item in owners)
        raise SepoError(
            f"{kind} '{name}' is registered by {packages} in {group}, expected one owner of a name: uninstall one of "
            "them, or have it rename its entry point."
        )
    if not name.isidentifier():
        raise SepoError(
            f"{owners[0]} has a name that can be no part of a recipe's key, expected letters, digits and underscores: "
            "have the package rename its entry point."
        )
    return owners[0]


def load(item: Registered, expected: type[T]) -> T:
    """Import what an entry point names.

    Args:
        item: from ``find``.
        expected: the class that it must be an instance of.

    Raises:
        SepoError: it cannot be imported (whatever its code raised), or is something else.
    """
    try:
        value = item.entry.load()
    except Exception as error:  # it is another package's code: anything can come out of it
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise SepoError(
            f"{item} cannot be loaded ({type(error).__name__}: {reason}); repair that package, or uninstall it."
        ) from error
    if not isinstance(value, expected):
        raise SepoError(
            f"{item} is of type {type(value).__name__}, expected {expected.__module__.rpartition('.')[0]}."
            f"{expected.__name__}: have the entry point name an instance of it."
        )
    return value
