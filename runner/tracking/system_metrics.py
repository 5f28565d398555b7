"""System metrics for MLflow's System tab, under MLflow's names.

This module reads MLflow's collectors itself, since ``SystemMetricsMonitor`` stops at the first call that fails, and
waits for a slow server without a time limit.
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
    """Samples of the load of processors, memory, disk, network and GPUs; none if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
    is false.

    Args:
        collectors: MLflow's, or those of a test.
    """

    def __init__(self, collectors: list[BaseMetricsMonitor] | None = None) -> None:
        self._collectors = list(_collectors()) if collectors is None else collectors
        self.collect()  # the first reading has no load: psutil counts from the previous one
        self.drain()

    def collect(self) -> None:
        """Add a sample; drop a collector that fails."""
        for collector in list(self._collectors):
            try:
                collector.collect_metrics()
            except Exception as error:
                log.debug("%s failed: %s", type(collector).__name__, error)
                self._collectors.remove(collector)

    def drain(self) -> dict[str, float]:
        """Return the means of the samples since the last call, by metric, and forget the samples."""
        means: dict[str, float] = {}
        for collector in self._collectors:
            means |= {f"system/{name}": float(value) for name, value in collector.aggregate_metrics().items()}
            collector.clear_metrics()
        return means


def _collectors() -> Iterator[Any]:
    if os.environ.get(_ENABLED, "true").lower() in ("false", "0"):
        return
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: tuple[Callable[[], Any], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    for monitor in monitors:
        try:
            yield monitor()
        except Exception as error:  # no GPU, no network
            log.debug("%s: %s", monitor, error)
