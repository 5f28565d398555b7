"""A process of several keeps to its share of the cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.commands import PROJECT, environment

SHARE = """
import json, os
from runner.devices.host import take_share_of_cores, usable_cores
take_share_of_cores({place}, {count})
print(json.dumps([sorted(os.sched_getaffinity(0)), usable_cores()]))
"""


def share(place: int, count: int) -> tuple[list[int], int]:
    command = [sys.executable, "-c", SHARE.format(place=place, count=count)]
    done = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, check=True)
    cores, usable = json.loads(done.stdout)
    return cores, usable


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process to cores")
def test_processes_have_cores_of_their_own_as_long_as_there_are_enough() -> None:
    everything = sorted(os.sched_getaffinity(0))
    count = len(everything)
    assert [share(place, count) for place in range(count)] == [([core], 1) for core in everything]
    assert share(1, count + 1) == (everything, 1)
