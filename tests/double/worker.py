"""``python -m tests.double.worker SPEC.json``: the real worker, whose session is ``tests.double.session``'s.

As in ``runner.engines.worker``, everything is imported under the guard: decode processes import this module anew.
"""

if __name__ == "__main__":
    import logging
    import os
    import sys

    from runner.engines.entrypoint import main
    from tests.double.framework import take_its_place_in_rays_processes, take_the_place_of_tensorflow
    from tests.double.session import FAULT, DoubleSession

    take_the_place_of_tensorflow()
    if fault := os.environ.get(FAULT):
        from tests.stress.mutations import install

        install(fault, DoubleSession)
    take_its_place_in_rays_processes()
    exit_status = main(*sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)
