"""``memory=``: limits on GPU and host memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runner.config.checks import at_least, names_of, whole_number
from runner.config.groups.device import DEVICES
from runner.core.errors import ConfigError

AUTO = "auto"
"""The ``memory.batch_size`` that is measured on the device, and the ``memory.host_limit_mib`` of its kind."""

_LEAST_HOST_MIB = 1024


@dataclass
class MemoryConfig:
    """Limits on GPU and host memory: the allocator's share, batches, queues, decode processes, and a ceiling.

    Processes of several GPUs (``device.index=all``) share what is set for the run; defaults are those of each.
    """

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
    """Decode processes; null: those of ``default_decode_workers``, at most one for each core."""

    default_decode_workers: dict[str, int] = field(default_factory=dict)
    """Decode processes by kind of device; for others by cores (a GPU leaves them all, a CPU's network shares them)."""

    writer_processes: int | None = None
    """Processes that write the files of shards, of up to 200 MiB each, and leave the worker's interpreter to what feeds
    a GPU; 0: threads of the worker write; null: with a GPU one for four cores, up to four, and twice as many where a
    model's rows have over a thousand values; otherwise 0. The actors of ``engine=ray`` write in threads."""

    host_limit_mib: Any = AUTO
    """Host memory, decode and writer processes included, in MiB, to which queue, batch and processes shrink; ``auto``:
    that of ``default_host_limit_mib``; null: no limit. CUDA's libraries, 1,000 MiB, come on top."""

    default_host_limit_mib: dict[str, int] = field(default_factory=lambda: {"cpu": 4096, "gpu": 12288, "metal": 4096})
    """Limit of host memory by kind of device, in MiB: a GPU is fed by more processes, with larger batches."""

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
        names_of("memory.default_decode_workers", self.default_decode_workers, DEVICES[1:])
        for device, processes in self.default_decode_workers.items():
            at_least(f"memory.default_decode_workers.{device}", processes, 1)
        if self.writer_processes is not None:
            at_least("memory.writer_processes", self.writer_processes, 0)
        if self.host_limit_mib not in (None, AUTO):
            whole_number("memory.host_limit_mib", self.host_limit_mib, _LEAST_HOST_MIB, "auto, or null for no limit")
        names_of("memory.default_host_limit_mib", self.default_host_limit_mib, DEVICES[1:])
        for device in DEVICES[1:]:
            at_least(
                f"memory.default_host_limit_mib.{device}", self.default_host_limit_mib.get(device, 0), _LEAST_HOST_MIB
            )

    def host_limit_of(self, device: str) -> int | None:
        """Return the limit of host memory with a kind of device, in MiB; None for none."""
        return self.default_host_limit_mib[device] if self.host_limit_mib == AUTO else self.host_limit_mib
