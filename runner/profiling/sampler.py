"""Samples of memory and power over a run, and the energy that processors and GPUs used.

Sources: resident memory from psutil, a GPU's memory and power from NVML, a processor's energy from the kernel's RAPL
counters (docs.kernel.org/power/powercap/powercap.html), which most systems let only root read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from runner.devices import nvml

_POWERCAP = Path("/sys/class/powercap")

_MIB = 1 << 20

MAX_SAMPLES = 20_000
"""Samples (about three hours at two a second) at which every second one is dropped and the interval doubles."""


class Sampler:
    """Samples memory and power from a thread, every ``every_s`` seconds between ``start`` and ``stop``.

    Args:
        every_s: seconds between samples.
        gpus: CUDA devices in use; may be set later.
        power: whether to sample power as well.
        pids: the processes; this one when empty; may be set later.

    Attributes:
        samples: each with ``at`` (``time.perf_counter``), ``rss_mib`` and, with a GPU, ``device_memory_mib`` of the one
            that holds most, and ``power_w`` of all of them together.
    """

    def __init__(
        self, every_s: float, gpus: Sequence[int] = (), *, power: bool = False, pids: Sequence[int] = ()
    ) -> None:
        self._every_s = every_s
        self.gpus = gpus
        self._power = power
        self._stopped = threading.Event()
        self.pids = pids or (os.getpid(),)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.samples: list[dict[str, float]] = []

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after a last sample; may be called again."""
        self._stopped.set()
        self._thread.join()

    def series(self, since: float, most: int = 400) -> list[dict[str, float]]:
        """Return ``most`` samples or fewer, with ``t_s`` for ``at``: seconds since ``since``, a
        ``time.perf_counter``."""
        every = -(-len(self.samples) // most) if self.samples else 1
        return [
            {"t_s": sample["at"] - since, **{key: value for key, value in sample.items() if key != "at"}}
            for sample in self.samples[::every]
        ]

    def _run(self) -> None:
        self._sample()
        while not self._stopped.wait(self._every_s):
            self._sample()
            if len(self.samples) >= MAX_SAMPLES:
                self.samples = self.samples[::2]
                self._every_s *= 2
        self._sample()

    def _sample(self) -> None:
        sample = {"at": time.perf_counter(), "rss_mib": sum(map(_rss_mib, self.pids))}
        held = [mib for index in self.gpus if (mib := nvml.process_mib(index, self.pids)) is not None]
        if held:
            sample["device_memory_mib"] = max(held)
        if self._power:
            watts = [value for index in self.gpus if (value := nvml.power_w(index)) is not None]
            if watts:
                sample["power_w"] = sum(watts)
        self.samples.append(sample)


class EnergyMeter:
    """Measures energy from its making on: of all processor packages (RAPL) and of the GPUs in use (NVML).

    It is that of whole packages and GPUs, other programs' work included.

    Args:
        gpus: CUDA devices in use.
        powercap: folder of the kernel's counters.
    """

    def __init__(self, gpus: Sequence[int] = (), powercap: Path = _POWERCAP) -> None:
        self._gpus = gpus
        zones = sorted(powercap.glob("intel-rapl:[0-9]*")) if powercap.is_dir() else []
        self._packages = {path.name: path for path in zones if path.name.count(":") == 1}
        self._before = self._read()

    def joules(self) -> dict[str, float]:
        """Return the joules by source, ``rapl`` and ``nvml``, without a source that can't be read."""
        joules: dict[str, float] = {}
        for (source, name), after in self._read().items():
            before = self._before.get((source, name))
            if before is None:
                continue
            used = after - before
            if used < 0 and source == "rapl":  # the counter wrapped
                used += _number(self._packages[name] / "max_energy_range_uj") or 0.0
            joules[source] = joules.get(source, 0.0) + used / (1e6 if source == "rapl" else 1.0)
        return joules

    def _read(self) -> dict[tuple[str, str], float]:
        counters: dict[tuple[str, str], float] = {}
        for name, package in self._packages.items():
            if (microjoules := _number(package / "energy_uj")) is not None:
                counters["rapl", name] = microjoules
        for index in self._gpus:
            if (joules := nvml.energy_j(index)) is not None:
                counters["nvml", str(index)] = joules
        return counters


def _rss_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 of one that has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss) / _MIB
    except psutil.Error:
        return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
