"""Objectives, token scorers, token weights, stages and judges that other packages register as entry points, by name.

Listing the names imports neither those packages nor torch. An entry point is loaded when a recipe or a call uses its
name, so a broken package affects only runs that use it. ``sepo doctor`` loads all of them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

from sepo.errors import SepoError

Kind = Literal["objective", "token_scorer", "token_weight", "stage", "judge"]

STORED_SCORERS = "sepo.scorers"
"""The entry-point group of token scorers whose scores a store keeps."""

GROUPS: dict[Kind, tuple[str, ...]] = {
    "objective": ("sepo.objectives",),
    "token_scorer": ("sepo.selectors", STORED_SCORERS),
    "token_weight": ("sepo.weights",),
    "stage": ("sepo.stages",),
    "judge": ("sepo.judges",),
}
"""The entry-point groups of each kind, as a package's pyproject.toml names them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """One entry point of another package.

    Attributes:
        kind: ``objective``, ``token_scorer``, ``token_weight``, ``stage`` or ``judge``.
        name: the name used in recipes and on command lines.
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
    """Return all entry points of a kind, ordered by name and package; cached per process."""
    found = [
        Registered(
            kind, entry.name, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "(unnamed)", entry, group
        )
        for group in GROUPS[kind]
        for entry in entry_points(group=group)
    ]
    return tuple(sorted(found, key=lambda item: (item.name, item.package)))


def names(kind: Kind, *, built_in: Container[str]) -> tuple[str, ...]:
    """Return the registered names of a kind that are not built in, without duplicates."""
    return tuple(dict.fromkeys(item.name for item in registered(kind) if item.name not in built_in))


def find(kind: Kind, name: str, *, built_in: Container[str]) -> Registered | None:
    """Return the entry point that registers a name, or None if there is none.

    Args:
        kind: the kind of the name.
        name: as written in a recipe.
        built_in: reserved names, which no package may register.

    Raises:
        SepoError: if two packages register the name, if it is also built in, or if it cannot be part of a key.
    """
    owners = [item for item in registered(kind) if item.name == name]
    if not owners:
        return None
    group = " and ".join(dict.fromkeys(item.group for item in owners))
    if name in built_in:
        raise SepoError(
            f"{kind} '{name}' is built in, and package {owners[0].package} registers it too ({group}: "
            f"{owners[0].entry.value}), expected one owner per name: uninstall that package, or rename its entry "
            "point."
        )
    if len(owners) > 1:
        packages = " and ".join(f"{item.package} ({item.entry.value})" for item in owners)
        raise SepoError(
            f"{kind} '{name}' is registered by {packages} in {group}, expected one owner per name: uninstall one of "
            "them, or rename its entry point."
        )
    if not name.isidentifier():
        raise SepoError(
            f"{owners[0]} has a name that cannot be part of a recipe key, expected letters, digits and underscores: "
            "rename its entry point."
        )
    return owners[0]


def load(item: Registered, expected: type[T]) -> T:
    """Import the object that an entry point refers to.

    Args:
        item: from ``find``.
        expected: the class that the object must be an instance of.

    Raises:
        SepoError: if it cannot be imported (whatever its code raised), or is not an instance of ``expected``.
    """
    try:
        value = item.entry.load()
    except Exception as error:  # importing another package can raise anything
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise SepoError(
            f"{item} cannot be loaded ({type(error).__name__}: {reason}); fix that package, or uninstall it."
        ) from error
    if not isinstance(value, expected):
        raise SepoError(
            f"{item} is of type {type(value).__name__}, expected {expected.__module__.rpartition('.')[0]}."
            f"{expected.__name__}: point the entry point to an instance of it."
        )
    return value
