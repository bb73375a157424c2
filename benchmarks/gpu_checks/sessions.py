"""Sessions with random weights on the device, one at a time, shared by the checks of a shape.

They are those of `sepo bench`, or ``twin``'s if LLaMA-Factory cannot be imported.
"""

import functools
import gc
import shutil
import time
from dataclasses import dataclass
from types import SimpleNamespace

import gpu_step

from gpu_checks.runner import Skip
from gpu_checks.twin import PLAIN_DPO, open_twin

HOST_DPO, HOST_SIMPO = "host_dpo", "host_simpo"
STAGES = gpu_step.STAGES


@dataclass(frozen=True)
class Setup:
    """A model, how it is quantized, and the size of its batches.

    Args:
        shape: a name of ``gpu_step.SHAPES``.
        quantization: ``none`` or ``4``.
        length: tokens per sequence, half of them prompt.
        rounds: timed rounds.
    """

    shape: str
    quantization: str = "none"
    length: int = 2048
    rounds: int = 5

    @property
    def name(self):
        return f"{self.shape}-{'nf4' if self.quantization == '4' else 'bf16'}"

    @property
    def shared_tokens(self):
        """Tokens of a step with every prompt once."""
        return gpu_step.PAIRS_PER_STEP * (2 * self.length - self.length // 2)

    def recipe(self, context, **changes):
        """Return the recipe of a stage, for the context's weights and data."""
        model = context.sessions.weights(self.shape)
        options = SimpleNamespace(length=self.length, quantization=self.quantization)
        return {**gpu_step.recipe(model, self.data(context), options, context.cuda), **changes}

    def data(self, context):
        """Return the directory of its pairs."""
        folder = context.folder / f"pairs-{self.name}-{self.length}"
        if not folder.exists():
            folder.mkdir(parents=True)
            pairs = gpu_step.PAIRS_PER_STEP * self.rounds
            gpu_step.save_pairs(folder, shape=self.shape, length=self.length, pairs=pairs)
        return folder


def require_gpu(context, shape):
    """Raise ``Skip`` if a shape is too large for the device."""
    if not context.cuda and shape != "tiny":
        raise Skip(f"shape {shape} needs a CUDA GPU; --tiny runs without one")


class Sessions:
    """The open session, and the random weights of its shape on disk.

    Args:
        context: the context of the checks.
    """

    def __init__(self, context):
        self.context = context
        self.setup = self.session = self.contenders = None

    @functools.cached_property
    def host_failure(self):
        """Why LLaMA-Factory's trainer cannot be imported, or None."""
        try:
            import sepo.hosts.llamafactory.workflow  # noqa: F401
        except Exception as error:  # incompatible packages raise exceptions of any type during import
            return f"{type(error).__name__}: {error}"[:300]
        return None

    @property
    def baseline(self):
        """Name of the contender that sepo's are compared with."""
        return HOST_DPO if self.host_failure is None else PLAIN_DPO

    def weights(self, shape):
        """Write the weights of a shape unless they exist; those of other shapes are removed, to save space."""
        require_gpu(self.context, shape)
        parent = self.context.folder / "weights"
        for other in parent.glob("*"):
            if other.name != shape:
                shutil.rmtree(other)
        return gpu_step.save_model(parent / shape, shape, self.context.device)

    def open(self, setup):
        """Return the session of a setup, and close the one before."""
        if self.setup == setup:
            return self.session
        require_gpu(self.context, setup.shape)
        self.close()
        if self.host_failure is None:
            self.session = self._of_bench(setup)
        else:
            self.session = open_twin(self.context, setup)
            self.contenders = self.session.contenders
        self.setup = setup
        return self.session

    def _of_bench(self, setup):
        from sepo.hosts.llamafactory.bench.contenders import plan_contenders
        from sepo.hosts.llamafactory.bench.recipe import measured_recipe
        from sepo.hosts.llamafactory.bench.session import open_session
        from sepo.hosts.llamafactory.recipe import host_keys

        measured = measured_recipe(setup.recipe(self.context), output_dir=str(self.context.folder / "output"))
        self.contenders = plan_contenders(measured, host_keys=host_keys(), names=STAGES)
        return open_session(self.contenders, rounds=setup.rounds, seed=0)

    def close(self):
        """Free the session's models."""
        self.setup = self.session = self.contenders = None
        gc.collect()
        self.context.empty_cache()


def settled(session, name):
    """Return the function that cleans up after a step of a contender."""
    return functools.partial(session.settle, name)


def timed(session, steps, *, rounds):
    """Return ``timed_rounds`` of some steps by name, each with the contender that owns it: (contender, step)."""
    from sepo.hosts.llamafactory.bench.rounds import timed_rounds

    return timed_rounds(
        {name: step for name, (_, step) in steps.items()},
        rounds=rounds,
        warm_up=session.longest(1)[0],
        clock=time.perf_counter,
        synchronize=session.synchronize,
        settle=lambda name: session.settle(steps[name][0]),
        on_step=lambda name: None,
    )


def peak(context, session, contender, step):
    """Return the peak bytes of a step above those before it: allocated on the GPU, else tensors on the CPU."""
    from sepo.hosts.llamafactory.bench.memory import STEPS_MEASURED, cuda_peak
    from sepo.memory.live import LiveBytes, tensors_of

    batches, settle = session.longest(STEPS_MEASURED), settled(session, contender)
    if context.cuda:
        return cuda_peak(step, settle, batches=batches)
    live = LiveBytes()
    live.leave_out([*tensors_of(session.model), *session.batches[contender][batches[0]].values()])
    with live:
        step(batches[0])
    settle()
    return live.peak
