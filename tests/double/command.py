"""``python -m tests.double.command``: the real command, whose worker is the double's (``tests.double.jobs``)."""

import sys

from tests.double.jobs import cli

if __name__ == "__main__":
    sys.exit(cli.main())
