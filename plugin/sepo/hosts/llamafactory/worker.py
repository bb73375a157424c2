"""What torchrun starts on each rank in place of the host's launcher file, so that our stages are known there."""

import os
import sys

if __name__ == "__main__":
    # A script's own folder comes first on the path; its module names must not shadow anybody's.
    if sys.path and os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
        sys.path.pop(0)
    from sepo.errors import SepoError
    from sepo.hosts.errors import print_error
    from sepo.hosts.llamafactory.recipe import load_host

    try:
        load_host("train")
    except SepoError as error:
        print_error(error)
        sys.exit(2)
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory.registration import register

    register(tuner)
    tuner.run_exp()
