"""Run several recipes one after another in the processes of one engine, since a host takes half a minute to start.

Started by torchrun or accelerate, or in the same way: ``engine_worker.py recipes.json``.
"""

import importlib
import json
import sys
from pathlib import Path


def main(file):
    import torch.distributed
    from accelerate.state import AcceleratorState, GradientState
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory.registration import register

    torch.distributed.destroy_process_group = lambda *args, **kwargs: None  # the host destroys the group after each run
    # DeepSpeed would compile its own CPU collectives for a minute; without them it uses torch's.
    # By import_module: the package's attribute of this name is torch itself.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    register(tuner)
    for recipe in json.loads(Path(file).read_text()):
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        tuner.run_exp(recipe)


if __name__ == "__main__":
    main(sys.argv[1])
