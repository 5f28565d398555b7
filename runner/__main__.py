"""``python -m runner``; see ``runner.cli.run``."""

import sys

from runner.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
