"""``python -m tests.double.command``: the real command, whose worker is the double's (``tests.double.jobs``)."""

import sys

import tests.double.jobs  # noqa: F401  # it sets the worker
from runner.cli import run

if __name__ == "__main__":
    sys.exit(run.main())
