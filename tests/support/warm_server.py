"""A Python process that has imported torch and the host, and forks a child for every requested program.

Started by ``warm`` as ``warm_server.py <descriptor> <path>``: one end of a socket pair, and the path of a socket to
which others (``warm_python.py``) can connect. A request is one message: JSON with ``words`` (the command line),
``cwd``, ``env`` (complete), ``session`` (whether to start a new session) and ``python`` (the interpreter for its
subprocesses), and three descriptors: one for replies, the program's standard output and its standard error. The replies
are the child's process id and, after its end, its exit status; there is none if the environment differs. A child is
killed when its requester has ended.
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
# Modules that a training run imports; a missing one only costs time.
IMPORTED = (
    "llamafactory.launcher", "llamafactory.train.tuner", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils", "transformers.data.data_collator", "peft.tuners.lora.bnb", "bitsandbytes",
    "deepspeed", "torch.distributed.fsdp", "torch._dynamo", "matplotlib.pyplot", "safetensors.torch",
    "tqdm.contrib.concurrent", "scipy.io", "sepo.cli",
)  # fmt: skip
# Variables that are read when a run starts, not during imports, or that concern a GPU; DS_ACCELERATOR is DeepSpeed's,
# which the server does not import.
READ_LATER = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "FORCE_TORCHRUN", "NPROC_PER_NODE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "COLUMNS", "PATH",
    "PYTHONPATH", "PYTHON_EXEC", "PWD", "OLDPWD", "PYTEST_CURRENT_TEST", "SEPO_SCORE_ONLY", "PYTORCH_CUDA_ALLOC_CONF",
}  # fmt: skip
FAMILIES_READ_LATER = ("ACCELERATE_", "FSDP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_")


def at_import(env):
    """Return the part of an environment that modules may read during import."""
    later = READ_LATER | {name for name in env if name.startswith(FAMILIES_READ_LATER)}
    return {name: value for name, value in env.items() if name not in later}


def prepare():
    """Import everything once, without starting threads: a fork only copies the calling thread."""
    for name in IMPORTED:
        importlib.import_module(name)
    import sepo.hosts.llamafactory as adapter

    for module in pkgutil.walk_packages(adapter.__path__, adapter.__name__ + "."):
        if ".board" not in module.name:  # imports gradio, which training runs do not
            importlib.import_module(module.name)
    import transformers

    for kind in ("ImageTextToText", "Seq2SeqLM", "TextToWaveform"):  # the host reads these mappings
        list(getattr(transformers, f"AutoModelFor{kind}")._model_mapping.keys())
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()


def received(channel):
    """Return the next request and its descriptors; None if the requester has ended."""
    size = array.array("i").itemsize
    message, ancillary, _, _ = channel.recvmsg(2**20, socket.CMSG_SPACE(3 * size))
    if not message:
        return None
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % size])
    return json.loads(message), list(descriptors)


def requests(channel, listener):
    """Yield requests of the parent and of connecting processes until the parent has ended."""
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
    """Fork a child for each request; return the request in the child, and None in the server at the end."""
    for request, (reply, out, err) in requests(channel, listener):
        while True:  # children that have ended
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
        sys.stdout.flush()
        sys.stderr.flush()
        if fits(request["env"]) and os.fork() == 0:  # this process waits for the program instead of the server
            child = os.fork()
            if child == 0:
                os.close(reply)
                channel.close()
                listener.close()
                return request, out, err
            os.close(out)
            os.close(err)
            os.write(reply, f"{child}\n".encode())
            ended = os.pidfd_open(child)
            if ended not in select.select([ended, reply], [], [])[0]:
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(BrokenPipeError):
                os.write(reply, f"{status}\n".encode())
            os._exit(0)
        for descriptor in (reply, out, err):
            os.close(descriptor)
    return None


def become(request, out, err):
    """Set up session, standard streams, directory and environment as in a new process."""
    if request["session"]:
        os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, standard in ((out, 1), (err, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(request["cwd"])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in known]
    if request["python"]:
        sys.executable = os.environ["PYTHON_EXEC"] = request["python"]  # the second is for torch's launcher
    import numpy
    from datasets import fingerprint

    random.seed()
    numpy.random.seed()
    fingerprint.fingerprint_rng.seed()


def execute(words):
    """Run ``python -m module words`` or ``script words`` like Python's command line."""
    rest = words[1:] if words[0] == PYTHON else words
    if rest[0] == "-u":  # added by a launcher
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
    sys.path.pop(0)  # the directory of this script
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
