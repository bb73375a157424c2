"""Run several recipes one after another in the processes of one engine: a host's start costs half a minute.

Started by torchrun or accelerate, or as they start it: ``engine_worker.py recipes.json``.
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

    torch.distributed.destroy_process_group = lambda *args, **kwargs: None  # the host does so after each run
    # DeepSpeed would compile collectives of its own for processors, for a minute; without them it takes torch's.
    # By import_module: the package's attribute of this name is torch itself.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    register(tuner)
    for recipe in json.loads(Path(file).read_text()):
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        tuner.run_exp(recipe)


if __name__ == "__main__":
    main(sys.argv[1])
