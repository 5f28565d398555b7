"""``device=``: the device to embed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.config.checks import one_of, whole_number

DEVICES = ("auto", "cpu", "gpu", "metal")

RESAMPLING = ("auto", "host", "device")


@dataclass
class DeviceConfig:
    """The device to embed on; if it is missing, the run warns and uses the CPU."""

    name: str = "auto"
    """auto, cpu, gpu or metal; auto prefers Metal, then CUDA, then the CPU."""

    index: Any = 0
    """Number of the GPU, from 0; ``all``: every GPU, in a process of its own."""

    strict: bool = False
    """Fail if the requested device is missing, instead of a warning and the CPU."""

    resampling: str = "auto"
    """Where audio of common rates is resampled to 16 kHz: on the ``host``, by decode processes, or on the ``device``;
    auto: on a CUDA GPU on the device. The embeddings are the same to 1e-6."""

    def __post_init__(self) -> None:
        one_of("device.resampling", self.resampling, RESAMPLING)
        one_of("device.name", self.name, DEVICES)
        if self.index != "all":
            whole_number("device.index", self.index, 0, "or all")
