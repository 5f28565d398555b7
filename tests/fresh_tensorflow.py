"""Codes that each need a TensorFlow that nothing was asked of yet, in forks of one process that has imported it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.commands import PROJECT, environment

_RUN_EACH = """
import os, sys
from runner.inference.tensorflow_import import import_tensorflow
import_tensorflow()  # once; what it does with devices is for each process to say
for code in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():
        exec(code, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, code
"""
_END = "-----\n"


def run_fresh(*codes: str) -> list[str]:
    """What each code prints, one after the other; TensorFlow fixes its devices and flags once per process."""
    each = [f"{textwrap.dedent(code)}\nprint({_END[:-1]!r})" for code in codes]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH, *each],
        cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split(_END)[:-1]
