"""The machine's load for the System tab of MLflow's run page, under MLflow's own names.

MLflow's collectors are read here and not by its ``SystemMetricsMonitor``: that one ends at the first call which fails,
and waits without a limit for a server that is slow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger(__name__)

_ENABLED = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


class SystemMetrics:
    """The load of processors, memory, disk, network and GPUs of this machine; nothing where MLflow is told not to.

    Args:
        collectors: MLflow's, or those of a test.
    """

    def __init__(self, collectors: list[BaseMetricsMonitor] | None = None) -> None:
        self._collectors = list(_collectors()) if collectors is None else collectors
        self.collect()  # the processors' load is counted from its last reading on: the first one is of nothing
        self.take()

    def collect(self) -> None:
        """Take a sample; a collector that fails is not asked again."""
        for each in list(self._collectors):
            try:
                each.collect_metrics()
            except Exception as error:
                log.debug("%s gives nothing: %s", type(each).__name__, error)
                self._collectors.remove(each)

    def take(self) -> dict[str, float]:
        """The means of the samples since they were last taken, by metric."""
        found: dict[str, float] = {}
        for each in self._collectors:
            found |= {f"system/{name}": float(value) for name, value in each.aggregate_metrics().items()}
            each.clear_metrics()
        return found


def _collectors() -> Iterator[Any]:
    if os.environ.get(_ENABLED, "true").lower() in ("false", "0"):
        return
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: tuple[Callable[[], Any], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    for kind in kinds:
        try:
            yield kind()
        except Exception as error:  # no GPU, no network
            log.debug("%s: %s", kind, error)
