"""Package versions and machine of a measurement."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sepo import __version__

_PACKAGES = ("torch", "transformers", "llamafactory", "peft", "trl", "accelerate", "bitsandbytes")
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect speed."""
    found = {"sepo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine(*, cuda: bool) -> dict[str, Any]:
    """Describe the processor, and the GPU if it is used.

    Args:
        cuda: whether the first GPU ran the steps.
    """
    cpu = _cpu_facts()
    flags = cpu.get("flags", "").split()
    found: dict[str, Any] = {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "processor_family_model": [cpu.get("cpu family"), cpu.get("model")],
        "cache": cpu.get("cache size"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "torch": torch_build(),
        "system": platform.platform(),
        "gpu": None,
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory}
    return found


def torch_build() -> dict[str, Any]:
    """Return the build of torch: version, vector instructions that it uses, and its matrix libraries."""
    return {
        "version": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
    }


def _cpu_facts() -> dict[str, str]:
    """Return the entries of the first processor in /proc/cpuinfo."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                facts.setdefault(name.strip(), value.strip())
    return facts
