"""``memory=``: limits on GPU and host memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runner.config.checks import at_least, names_of, whole_number
from runner.config.groups.device import DEVICES
from runner.core.errors import ConfigError

AUTO = "auto"
"""The ``memory.batch_size`` that is measured on the device."""


@dataclass
class MemoryConfig:
    """Limits on GPU and host memory: the allocator's share, batches, queues, decode processes, and a ceiling."""

    name: str = "balanced"
    """Name of the policy; the option sets it."""

    gpu_memory_fraction: float = 0.8
    """Largest share of the GPU's memory, above 0 and up to 1. The default leaves room for a display."""

    gpu_allow_growth: bool = True
    """Allocate GPU memory on demand; false: reserve the whole share up front, so that a run can't lack it later."""

    batch_size: Any = None
    """Examples in a batch; null: that of ``default_batch_size``; ``auto``: measured on the device, in seconds."""

    default_batch_size: dict[str, int] = field(default_factory=lambda: {"cpu": 256, "gpu": 1024, "metal": 128})
    """Examples in a batch by kind of device, cut where it would exceed a limit below."""

    queue_depth: int = 4
    """Full batches that wait ahead of the device; more smooth out clips that decode slowly, and take memory."""

    embeddings_mib: int = 512
    """Embeddings of unfinished shards in memory, in MiB; beyond it they go to a temporary file."""

    decode_workers: int | None = None
    """Decode processes; null: by device and cores (a GPU leaves them all cores, the CPU's network shares them)."""

    writer_processes: int = 0
    """Processes that write the files of shards, of up to 200 MiB each; 0: threads of the worker write them. Processes
    leave its interpreter to what feeds a GPU."""

    host_limit_mib: int | None = 4096
    """Host memory, decode processes included, in MiB, to which queue, batch and processes shrink; null: no limit."""

    def __post_init__(self) -> None:
        if not 0.0 < self.gpu_memory_fraction <= 1.0:
            raise ConfigError(
                f"memory.gpu_memory_fraction={self.gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1"
            )
        if self.batch_size not in (None, AUTO):
            whole_number("memory.batch_size", self.batch_size, 1, "auto, or null for the device's own")
        names_of("memory.default_batch_size", self.default_batch_size, DEVICES[1:])
        for device in DEVICES[1:]:
            at_least(f"memory.default_batch_size.{device}", self.default_batch_size.get(device, 0), 1)
        at_least("memory.queue_depth", self.queue_depth, 1)
        at_least("memory.embeddings_mib", self.embeddings_mib, 0)
        if self.decode_workers is not None:
            at_least("memory.decode_workers", self.decode_workers, 1)
        at_least("memory.writer_processes", self.writer_processes, 0)
        if self.host_limit_mib is not None:
            at_least("memory.host_limit_mib", self.host_limit_mib, 1024)
