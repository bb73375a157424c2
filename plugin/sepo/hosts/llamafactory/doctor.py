"""`sepo doctor`: what is installed, what is active, what is wrong, and what to do about it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from sepo import __version__
from sepo.errors import SepoError
from sepo.hosts.llamafactory.enable import enabled, pth_file
from sepo.plugins import GROUPS, registered

_EXTRA = re.compile(r"extra\s*==\s*['\"]llamafactory['\"]")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        good: whether it is as it should be.
        text: what was found, and what to do where it is not.
    """

    good: bool
    text: str


def _requirements() -> Iterator[Requirement]:
    """What the extra `llamafactory` asks for, as the installed package records it."""
    for line in metadata.requires("sepo") or []:
        requirement = Requirement(line)
        if _EXTRA.search(str(requirement.marker or "")):
            yield requirement


def _packages() -> Iterator[Finding]:
    for requirement in _requirements():
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(False, f"{requirement.name} is not installed; run: pip install 'sepo[llamafactory]'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(True, f"{requirement.name} {version}")
        else:
            yield Finding(
                False,
                f"{requirement.name} {version} is outside {requirement.specifier}, the range that was run together; "
                "run: pip install 'sepo[llamafactory]'",
            )


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(True, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield Finding(True, f"no GPU; {os.cpu_count()} CPU cores")


# What we rebind or call of the host that is not its public interface: module, name, parameters that we rely on.
_CONTRACT = (
    ("llamafactory.train.tuner", "_training_function", ("config",)),
    (
        "llamafactory.train.tuner",
        "run_dpo",
        ("model_args", "data_args", "training_args", "finetuning_args", "callbacks"),
    ),
    ("llamafactory.train.tuner", "get_train_args", ("args",)),
    ("llamafactory.train.tuner", "Worker", ()),
    ("llamafactory.train.dpo.trainer", "CustomDPOTrainer", ("model", "ref_model", "finetuning_args", "processor")),
    ("llamafactory.data.loader", "align_dataset", ("dataset", "dataset_attr", "data_args", "training_args")),
    ("llamafactory.data.loader", "PairwiseDatasetProcessor", ("template", "tokenizer", "processor", "data_args")),
    ("llamafactory.data.loader", "_get_merged_dataset", ("dataset_names", "model_args", "data_args", "stage")),
    (
        "llamafactory.data.loader",
        "PairwiseDatasetProcessor",
        ("template", "tokenizer", "processor", "data_args"),
    ),
    ("llamafactory.data.data_utils", "split_dataset", ("dataset", "eval_dataset", "data_args", "seed")),
    ("transformers.integrations.deepspeed", "unset_hf_deepspeed_config", ()),
    ("transformers", "AttentionInterface", ()),
    ("transformers.masking_utils", "AttentionMaskInterface", ()),
    ("transformers.models.llama.modeling_llama", "eager_attention_forward", ("module", "query", "key", "value")),
    ("accelerate.state", "GradientState", ()),
)


def host_contract() -> list[Finding]:
    """Whether the host still has what we rebind or call beyond its public interface."""
    import importlib

    findings = []
    for module_name, name, parameters in _CONTRACT:
        found: Callable[..., object] | None = getattr(importlib.import_module(module_name), name, None)
        if found is None:
            findings.append(Finding(False, f"the host has no {module_name}.{name}; use LLaMA-Factory 0.9.5"))
            continue
        has = inspect.signature(found).parameters
        absent = [parameter for parameter in parameters if parameter not in has]
        text = f"{module_name}.{name}" + (f" lacks {', '.join(absent)}; use LLaMA-Factory 0.9.5" if absent else "")
        findings.append(Finding(not absent, text))
    return findings


def _activation() -> Iterator[Finding]:
    path = pth_file()
    if not path.exists():
        yield Finding(True, "not enabled: `sepo train` knows our stages, plain `llamafactory-cli train` does not")
        return
    if not enabled():
        yield Finding(False, f"{path} is not what this version writes; run: sepo enable")
        return
    modules = "llamafactory.train.tuner, llamafactory.webui.interface"
    code = f"import sys, {modules}; sys.exit(not all(hasattr(m, '_sepo_registered') for m in ({modules})))"
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if quiet.returncode == 0:
        yield Finding(
            True, f"enabled in this environment ({path}): `llamafactory-cli train` and `webui` know our stages"
        )
    else:
        last = (quiet.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(False, f"{path} is there, but a new interpreter does not register our stages ({last})")


def _registered() -> Iterator[Finding]:
    """What other packages register, each loaded and resolved with its defaults."""
    from sepo.hosts.llamafactory.registration import host_keys
    from sepo.hosts.shared.stages import check_registered

    items = [item for kind in GROUPS for item in registered(kind)]
    if not items:
        yield Finding(True, "nothing: every objective, token scorer and stage is sepo's own")
    try:
        known = host_keys()
    except (ImportError, RuntimeError, OSError):  # said under "host"
        known = ()
    for item in items:
        try:
            check_registered(item, host_keys=known)
        except SepoError as error:
            yield Finding(False, str(error))
        else:
            yield Finding(True, str(item))


def _section(title: str, findings: Iterator[Finding] | list[Finding]) -> bool:
    print(title)
    good = True
    for finding in findings:
        print(f"  {'ok   ' if finding.good else 'WRONG'} {finding.text}", flush=True)
        good = good and finding.good
    return good


def doctor() -> int:
    """Print the report.

    Returns:
        0 if nothing is wrong, else 1.
    """
    print(f"sepo {__version__} in {Path(__file__).parents[2]}, Python {sys.version.split()[0]} ({sys.prefix})")
    good = _section("packages", _packages())
    if not good and not _importable():
        return 1
    good &= _section("devices", _devices())
    good &= _section("host", _host())
    good &= _section("activation", _activation())
    good &= _section("registered by other packages", _registered())
    print("nothing is wrong" if good else "something is wrong: see WRONG above")
    return 0 if good else 1


def _board() -> Iterator[Finding]:
    from llamafactory.extras.packages import is_gradio_available

    from sepo.hosts.llamafactory.board.patch import board_gaps
    from sepo.hosts.shared.stages import available_stages

    if not is_gradio_available():
        yield Finding(True, "LLaMA Board: gradio is not installed, so there is none here")
        return
    gaps = board_gaps()
    for gap in gaps:
        yield Finding(False, f"LLaMA Board does not list our stages: {gap}; use LLaMA-Factory 0.9.5")
    if not gaps:
        yield Finding(True, f"LLaMA Board: `sepo webui` lists {', '.join(available_stages())}")


def _importable() -> bool:
    import importlib.util

    return importlib.util.find_spec("llamafactory") is not None and importlib.util.find_spec("torch") is not None


def _host() -> Iterator[Finding]:
    try:
        yield from host_contract()
        yield from _board()
    except (ImportError, RuntimeError, OSError, SepoError) as error:
        reason = str(error).strip().splitlines()[0]
        yield Finding(False, f"LLaMA-Factory cannot be imported ({reason}); run: pip install 'sepo[llamafactory]'")
