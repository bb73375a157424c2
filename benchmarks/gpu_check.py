"""All checks that need a GPU, in one command of at most nine minutes, with one result file.

    python benchmarks/gpu_check.py                       # writes benchmarks/results/gpu_check-<gpu>.json
    python benchmarks/gpu_check.py --only 'speed/7b*'    # some of the checks, by name
    python benchmarks/gpu_check.py --tiny                # tiny shapes, also without a GPU: does the script itself run

Nothing is downloaded: models have random weights, made on the device. What needs to be installed is torch, the
packages of the extra `llamafactory`, and bitsandbytes. If LLaMA-Factory cannot be imported, a plain padded DPO step
takes the place of its dpo, and what cannot run without it is recorded as an error.

Groups, in their order: `start` (one tiny step), `device` (matrix product, copies), `correctness` (values and gradients
against the plain method), `pair_attention` (one call of a kernel that takes lengths, in place of two calls per pair),
`end_to_end` (`sepo train` and `sepo plan`), and by shape `speed`, `memory`, `kernels` (each of sepo's kernels off in
turn), `profile` and `scoring`. The largest shapes are last: what is not reached in time can be run by another command
with `--only`.

A check that fails, raises, exceeds its time budget or kills its process is recorded, and the next one runs. The file
is written after every check, so that a run that is killed leaves all finished ones. Exit status 1 if a check failed,
else 0. The result file is JSON:

- `schema`: 1.
- `machine`: processor, cores, threads, system; `gpu` (name, memory_bytes, driver, capability, multiprocessors; null on
  a CPU).
- `versions`: of Python, sepo, torch, CUDA and the packages that matter; null for one that is not installed.
- `flags`: settings that affect speed and rounding (TF32, attention kernels, allocator, environment variables).
- `options`: of the command. `started`: time in UTC. `seconds`: of the whole run. `complete`: whether all chosen checks
  have an entry.
- `checks`: in the order in which they ran, each with
  `name` (`<group>/<name>`), `seconds`, `budget_seconds`,
  `status`: `passed`; `failed` (the criterion is not met); `error` (an exception, or the process ended); `timeout`;
  `skipped` (the check cannot run here, or the time was up),
  `reason`: one line unless it passed, else null; `traceback`: its last lines, for an exception,
  `values`: the numbers, empty without any (`"nan"` and `"inf"` are text). Names of numbers end in their unit; of
  `seconds` of steps there are median, min, max and all.
"""

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gpu_checks import correctness, end_to_end, pair_attention, rates, steps
from gpu_checks.runner import BAD, Runner, chosen

RESULTS = Path(__file__).parent / "results"
SECONDS = 540
PACKAGES = ("flash-attn", "triton", "trl", "tokenizers", "datasets", "numpy")
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE",
               "OMP_NUM_THREADS", "CUDA_LAUNCH_BLOCKING", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # fmt: skip


def all_checks(*, tiny):
    """Return all checks in their order: the least that must be known first, the largest models last.

    Tiny ones run on any CPU, however busy: their time budgets are ten times as long.
    """
    by_shape = steps.checks(tiny=tiny)
    policies = [check for check in by_shape if check.name.partition("/")[2].startswith(("7b", "tiny"))]
    found = [
        steps.first(),
        *rates.device_checks(),
        *correctness.checks(),
        *pair_attention.checks(),
        *end_to_end.checks(tiny=tiny),
        *policies,
        *rates.scoring_checks(tiny=tiny),
        *(check for check in by_shape if check not in policies),
    ]
    return [replace(check, seconds=10 * check.seconds) for check in found] if tiny else found


class Context:
    """What the checks share, in the worker process.

    Args:
        folder: a temporary directory.
        tiny: whether shapes are tiny.

    Attributes:
        machine: description of machine, versions and flags.
        cuda: whether a GPU is used; ``device`` is its name for torch.
        sessions: the open session of `sepo bench`.
    """

    def __init__(self, folder, *, tiny):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from sepo.hosts.llamafactory.recipe import quiet_on_one_device

        quiet_on_one_device()
        import torch
        from gpu_checks.sessions import Sessions

        self.folder, self.tiny = folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        if not self.cuda:
            torch.set_num_threads(1)  # tiny shapes gain nothing from more
        self.sessions = Sessions(self)
        self.machine = description(cuda=self.cuda)
        self._peak_flops = None

    def after_check(self):
        """Free what a check left behind."""
        self.empty_cache()

    def empty_cache(self):
        """Return cached memory to the device."""
        if self.cuda:
            import torch

            torch.cuda.empty_cache()

    def synchronize(self):
        """Wait for the device."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()

    def peak_flops(self):
        """Return the FLOPs per second of a large bfloat16 matrix product; None without a GPU."""
        if self.cuda and self._peak_flops is None:
            import gpu_step

            self._peak_flops = gpu_step.matrix_peak()
            self.empty_cache()
        return self._peak_flops

    def allocated(self, model):
        """Return the bytes of tensors on the GPU; on a CPU, those of the model."""
        import torch

        from sepo.memory.live import tensors_of

        if self.cuda:
            self.empty_cache()
            return torch.cuda.memory_allocated()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model))

    def reserved(self, peak):
        """Return the allocator's peak, and its share above the peak of tensors; nothing on a CPU."""
        if not self.cuda:
            return {}
        import torch

        reserved = torch.cuda.max_memory_reserved()
        return {"reserved_peak_bytes": reserved, "fragmentation": reserved / peak - 1}

    def besides_tensors(self):
        """Return the GPU memory that is neither free nor reserved for tensors: CUDA's own; nothing on a CPU."""
        if not self.cuda:
            return {}
        import torch

        free, total = torch.cuda.mem_get_info()
        return {"cuda_context_bytes": total - free - torch.cuda.memory_reserved()}

    def is_device_event(self, event):
        """Return whether a profiler's event is one of the device: a kernel, on a GPU."""
        return "CUDA" in str(event.device_type) if self.cuda else True


def description(*, cuda):
    """Describe machine, versions and flags."""
    from importlib import metadata

    import torch

    from sepo.hosts.llamafactory.bench.machine import machine, versions

    where = machine(cuda=cuda)
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        where["gpu"] |= {
            "driver": _driver(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
        }
    packages = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    backends = torch.backends.cuda
    return {
        "machine": where,
        "versions": {**versions(), **packages, "cuda": torch.version.cuda},
        "flags": {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "allow_bf16_reduced_precision_reduction": backends.matmul.allow_bf16_reduced_precision_reduction,
            "flash_sdp": backends.flash_sdp_enabled(),
            "efficient_sdp": backends.mem_efficient_sdp_enabled(),
            "cudnn_sdp": backends.cudnn_sdp_enabled(),
            "math_sdp": backends.math_sdp_enabled(),
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        },
    }


def _driver():
    import subprocess

    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


class ResultFile:
    """The result file, written whole after every change.

    Args:
        path: the file; None for the default, whose name has that of the machine.
        options: the command's options, for the record.
        expected: number of checks.
    """

    def __init__(self, path, options, expected):
        self.path, self.expected, self.start = path, expected, time.monotonic()
        self.result = {
            "schema": 1,
            "machine": None,
            "versions": None,
            "flags": None,
            "options": options,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "complete": False,
            "checks": [],
        }

    def add_machine(self, found):
        """Add the description of the machine."""
        self.result |= found
        if self.path is None:
            gpu = found["machine"]["gpu"]
            name = (gpu["name"] if gpu else platform.machine()).replace(" ", "-")
            self.path = RESULTS / f"gpu_check-{'tiny-' if self.result['options']['tiny'] else ''}{name}.json"
        self.write()

    def add(self, entry):
        """Add the record of a check."""
        self.result["checks"].append(entry)
        print(
            f"{entry['status']:8s} {entry['seconds']:7.1f} s  {entry['name']}"
            + (f": {' '.join(entry['reason'].split())[:200]}" if entry["reason"] else ""),
            flush=True,
        )
        self.write()

    def write(self):
        """Write the file, never a part of it."""
        self.result["seconds"] = round(time.monotonic() - self.start, 3)
        self.result["complete"] = len(self.result["checks"]) == self.expected
        path = self.path or RESULTS / f"gpu_check-{platform.machine()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(json.dumps(_finite(self.result), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def _finite(value):
    """Return plain values with infinite numbers and NaN as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def weights_directory():
    """Return the directory for random weights: in memory if it holds the largest shapes, else the default's."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 40 * 2**30:
        return str(memory)
    return None


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; a GPU is not needed")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names of checks, repeatable")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all checks together")
    parser.add_argument("--list", action="store_true", help="print the names and time budgets of the checks")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def main(argv=None):
    options = parsed(argv)
    checks = chosen(all_checks(tiny=options.tiny), options.only)
    if not checks:
        sys.exit(f"gpu_check: error: no check matches {', '.join(options.only)}; --list prints the names.")
    if options.list:
        print("\n".join(f"{check.seconds:5.0f} s  {check.name}" for check in checks))
        return
    sys.exit(run(checks, options))


def run(checks, options):
    """Run checks, write the result file and return the exit status."""
    given = {"tiny": options.tiny, "only": options.only, "seconds": options.seconds}
    file = ResultFile(options.output, given, len(checks))
    with tempfile.TemporaryDirectory(prefix="sepo-gpu-check-", dir=weights_directory()) as folder:
        Runner(
            checks,
            context=lambda: Context(Path(folder), tiny=options.tiny),
            seconds=options.seconds,
            on_entry=file.add,
            on_machine=file.add_machine,
        ).run()
    counts = {}
    for entry in file.result["checks"]:
        counts[entry["status"]] = counts.get(entry["status"], 0) + 1
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}; written: {file.path}")
    return int(any(status in BAD for status in counts))


if __name__ == "__main__":
    main()
