"""Script that torchrun starts on each rank in place of the host's launcher, so that sepo's stages are registered."""

import os
import sys

if __name__ == "__main__":
    # A script's directory comes first on sys.path; the modules in it must not shadow other modules.
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

    from sepo.hosts.llamafactory import messages
    from sepo.hosts.llamafactory.registration import register

    register(tuner)
    messages.register()
    tuner.run_exp()
