"""A Python that has imported torch and the host, and forks a child for every program that it is asked to run.

Started by ``warm`` as ``warm_server.py <descriptor>``, the number of one end of a pair of sockets. A request is one
message: JSON with ``words`` (the command line), ``cwd``, ``env`` (all of it) and ``session`` (whether it begins a
session of its own), and three descriptors: where to answer, the program's standard output, its standard error. The
answers are the child's process id and then, when it has ended, its exit status.
"""

import array
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import socket
import sys
import threading

# What a training run has imported when it ends; a module that is missed here costs time only.
IMPORTED = (
    "llamafactory.launcher", "llamafactory.train.tuner", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils", "transformers.data.data_collator", "peft.tuners.lora.bnb", "bitsandbytes",
    "deepspeed", "torch.distributed.fsdp", "torch._dynamo", "matplotlib.pyplot", "safetensors.torch",
    "tqdm.contrib.concurrent", "scipy.io", "sepo.cli",
)  # fmt: skip


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


def serve(channel):
    """Fork a child for each request; returns in the child, with its request, and in the server None at the end."""
    while True:
        request = received(channel)
        while True:  # what has ended since
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
        if request is None:
            return None
        asked, (answer, out, err) = request
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:  # waits for the program, so that the server need not
            child = os.fork()
            if child == 0:
                os.close(answer)
                channel.close()
                return asked, out, err
            os.close(out)
            os.close(err)
            os.write(answer, f"{child}\n".encode())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.write(answer, f"{status}\n".encode())
            os._exit(0)
        for descriptor in (answer, out, err):
            os.close(descriptor)


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
    os.environ.clear()
    os.environ.update(asked["env"])
    import numpy
    from datasets import fingerprint

    random.seed()
    numpy.random.seed()
    fingerprint.fingerprint_rng.seed()


def execute(words):
    """Run ``python -m module words`` or ``script words`` as Python's own command line does."""
    interpreter, *rest = words if words[0] == sys.executable else [sys.executable, *words]
    assert interpreter == sys.executable
    if rest[0] == "-m":
        sys.argv = rest[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, os.path.dirname(os.path.realpath(rest[0])))
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # this script's folder
    prepare()
    task = serve(socket.socket(fileno=int(sys.argv[1])))
    if task is not None:
        become(*task)
        execute(task[0]["words"])
