"""Write the shipped pairs with known errors anew: ``python -m demo_pairs [DIRECTORY]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo_pairs.pairs import generate_fluent_pairs, generate_pairs
from sepo.demo.dataset import NAMES, SHIPPED, dataset_info
from sepo.files import write_whole


def write_pairs(directory: Path) -> None:
    """Write the four data sets and LLaMA-Factory's ``dataset_info.json``; the bytes are the same on every machine."""
    parts = (*generate_pairs(), *generate_fluent_pairs())
    contents: dict[str, object] = {f"{name}.json": part for name, part in zip(NAMES, parts, strict=True)}
    contents["dataset_info.json"] = dataset_info()
    for name, content in contents.items():
        write_whole(directory / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(SHIPPED)))
