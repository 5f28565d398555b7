"""A Ray cluster for tests that need none of their own: starting one takes three seconds of processor time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.commands import PROJECT
from tests.double.framework import SITE


@contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Any]:
    """A cluster of one machine with so many CPUs, whose actors have the double; it brings drivers no actor's log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), str(PROJECT)]))
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": num_cpus,
            "object_store_memory": 100 << 20,
            "include_dashboard": False,
            "no_monitor": True,  # of the autoscaler
            "include_log_monitor": False,
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster
        finally:
            cluster.shutdown()
