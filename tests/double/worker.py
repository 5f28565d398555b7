"""``python -m tests.double.worker SPEC.json``: the real worker, whose session is ``tests.double.session``'s.

As in ``runner.engines.worker``, everything is imported under the guard: decode processes import this module anew.
"""

if __name__ == "__main__":
    import logging
    import os
    import sys

    from runner.engines.entrypoint import main
    from tests.double.framework import begin, take_its_place_in_rays_processes

    begin()
    take_its_place_in_rays_processes()
    exit_status = main(*sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)
