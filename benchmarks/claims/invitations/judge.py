"""The judge of sampled responses: minus the number of facts that are missing or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claims.invitations.data import values_of
from claims.invitations.questions import wrong_facts
from sepo.judges import Judge

NAME = "invitation_facts"


def _reward(response: str, expected: Mapping[str, Any]) -> float:
    return -float(wrong_facts(response, values_of(expected)))


facts = Judge(_reward)


def write_registration(folder: Path) -> Path:
    """Write the metadata with which `sepo` finds the judge if the directory is on the path; return the directory."""
    info = folder / "invitations-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: invitations\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[sepo.judges]\n{NAME} = {__name__}:facts\n", encoding="utf-8")
    return folder
