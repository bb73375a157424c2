"""A Python that has imported torch and the host, and forks a child for every program that it is asked to run.

Started by ``warm`` as ``warm_server.py <descriptor> <path>``: the number of one end of a pair of sockets, and where
others (``warm_python.py``) can connect. A request is one message: JSON with ``words`` (the command line), ``cwd``,
``env`` (all of it), ``session`` (whether it begins a session of its own) and ``python`` (the interpreter for what it
starts), and three descriptors: where to answer, the program's standard output, its standard error. The answers are the
child's process id and then, when it has ended, its exit status; nothing, where the environment is another. A child is
killed when whoever asked has gone.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import select
import signal
import socket
import sys
import threading

PYTHON = sys.executable
# What a training run has imported when it ends; a module that is missed here costs time only.
IMPORTED = (
    "llamafactory.launcher", "llamafactory.train.tuner", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils", "transformers.data.data_collator", "peft.tuners.lora.bnb", "bitsandbytes",
    "deepspeed", "torch.distributed.fsdp", "torch._dynamo", "matplotlib.pyplot", "safetensors.torch",
    "tqdm.contrib.concurrent", "scipy.io", "sepo.cli",
)  # fmt: skip
# Read when a run begins, not when a module is imported, or of a GPU; DS_ACCELERATOR is DeepSpeed's, which the server
# leaves out.
READ_LATER = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "FORCE_TORCHRUN", "NPROC_PER_NODE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "COLUMNS", "PATH",
    "PYTHONPATH", "PYTHON_EXEC", "PWD", "OLDPWD", "PYTEST_CURRENT_TEST", "SEPO_SCORE_ONLY", "PYTORCH_CUDA_ALLOC_CONF",
}  # fmt: skip
FAMILIES_READ_LATER = ("ACCELERATE_", "FSDP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_")


def at_import(env):
    """The part of an environment that a module may read when it is imported."""
    later = READ_LATER | {name for name in env if name.startswith(FAMILIES_READ_LATER)}
    return {name: value for name, value in env.items() if name not in later}


def prepare():
    """Import everything once, without a thread: a child has none but the one that forks it."""
    for name in IMPORTED:
        importlib.import_module(name)
    import sepo.hosts.llamafactory as ours

    for module in pkgutil.walk_packages(ours.__path__, ours.__name__ + "."):
        if ".board" not in module.name:  # gradio's, which no training run imports
            importlib.import_module(module.name)
    import transformers

    for kind in ("ImageTextToText", "Seq2SeqLM", "TextToWaveform"):  # the host asks these which models they know
        list(getattr(transformers, f"AutoModelFor{kind}")._model_mapping.keys())
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()


def received(channel):
    """The next request and its descriptors; None where whoever asks has ended."""
    size = array.array("i").itemsize
    message, ancillary, _, _ = channel.recvmsg(2**20, socket.CMSG_SPACE(3 * size))
    if not message:
        return None
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % size])
    return json.loads(message), list(descriptors)


def requests(channel, listener):
    """Requests until whoever started this has ended, with those of others who connect."""
    while True:
        ready, _, _ = select.select([channel, listener], [], [])
        if channel in ready:
            request = received(channel)
            if request is None:
                return
            yield request
        else:
            connection, _ = listener.accept()
            with connection:
                request = received(connection)
            if request is not None:
                yield request


def serve(channel, listener, fits):
    """Fork a child for each request; returns in the child, with its request, and in the server None at the end."""
    for asked, (answer, out, err) in requests(channel, listener):
        while True:  # what has ended since
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
        sys.stdout.flush()
        sys.stderr.flush()
        if fits(asked["env"]) and os.fork() == 0:  # waits for the program, so that the server need not
            child = os.fork()
            if child == 0:
                os.close(answer)
                channel.close()
                listener.close()
                return asked, out, err
            os.close(out)
            os.close(err)
            os.write(answer, f"{child}\n".encode())
            ended = os.pidfd_open(child)
            if ended not in select.select([ended, answer], [], [])[0]:
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(BrokenPipeError):
                os.write(answer, f"{status}\n".encode())
            os._exit(0)
        for descriptor in (answer, out, err):
            os.close(descriptor)
    return None


def become(asked, out, err):
    """Everything that a fresh process has of its own."""
    if asked["session"]:
        os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, standard in ((out, 1), (err, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(asked["cwd"])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in known]
    if asked["python"]:
        sys.executable = os.environ["PYTHON_EXEC"] = asked["python"]  # the second is torch's launcher's
    import numpy
    from datasets import fingerprint

    random.seed()
    numpy.random.seed()
    fingerprint.fingerprint_rng.seed()


def execute(words):
    """Run ``python -m module words`` or ``script words`` as Python's own command line does."""
    rest = words[1:] if words[0] == PYTHON else words
    if rest[0] == "-u":  # a launcher's
        rest = rest[1:]
    if rest[0] == "-m":
        sys.argv = rest[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, os.path.dirname(os.path.realpath(rest[0])))
        runpy.run_path(rest[0], run_name="__main__")


def main():
    own = at_import(os.environ)
    sys.path.pop(0)  # this script's folder
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[2])
    listener.listen()
    prepare()
    task = serve(socket.socket(fileno=int(sys.argv[1])), listener, lambda env: at_import(env) == own)
    if task is not None:
        become(*task)
        execute(task[0]["words"])


if __name__ == "__main__":
    main()
