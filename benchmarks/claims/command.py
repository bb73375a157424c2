"""What the commands of the studies in the world share: options, places of files, and the frame of a result."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sepo.hosts.llamafactory.bench.machine import machine, versions

RESULTS = Path(__file__).parent / "results"
WORK = Path.home() / ".cache" / "sepo" / "claims"


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser of the shared options, described by the first line of a module's docstring."""
    found = argparse.ArgumentParser(description=doc.partition("\n")[0])
    found.add_argument("--quick", action="store_true", help="two seeds, tiny sizes: does everything run")
    found.add_argument("--work", type=Path, help="directory of models and finished parts, kept for the next call")
    found.add_argument("--output", type=Path, help="JSON file for the results")
    return found


def write_result(
    options: argparse.Namespace, name: str, setting: Any, measure: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Run a study on one thread, and write its result; return the file.

    Args:
        options: the parsed options.
        name: name of the result file, in ``RESULTS`` unless options have another file, or are those of a quick run.
        setting: the study's settings, a dataclass.
        measure: takes the directory of finished parts; returns the result without its frame.
    """
    work = options.work or WORK / ("quick" if options.quick else "full")
    output = options.output or (work if options.quick else RESULTS) / name
    torch.set_num_threads(1)
    frame = {"setting": asdict(setting), "machine": machine(cuda=False), "versions": versions()}
    frame["date"] = datetime.now(UTC).date().isoformat()
    result = {**frame, **measure(work)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")
    return output


def _rounded(value: Any) -> Any:
    """Return a result with floats of five digits, at any depth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
