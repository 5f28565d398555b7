"""The worker: the fresh process that owns TensorFlow for one run.

    python -m runner.engines.worker [SPEC.json]

Everything is imported under the guard, because each decode process imports this module again (spawn does that with the
main module) and has no need of any of it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import logging
    import os
    import sys

    from runner.engines.entrypoint import main

    exit_status = main(*sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # all is on disk by now, and TensorFlow takes 0.7 s to tear itself down
