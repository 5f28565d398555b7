"""A session of plain arithmetic in the place of TensorFlow's, for runs whose numbers decide nothing."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from runner.audio.framing import scaled
from runner.contract.result import DeviceReport, Startup, WeightsReport
from runner.contract.spec import RunSpec
from runner.core.model_spec import ModelSpec
from runner.devices.detection import DeviceInfo, DeviceType
from runner.devices.selection import DeviceChoice
from runner.inference.memory import MemoryPlan
from runner.inference.precision import PrecisionChoice


def _embed(width: int, windows: np.ndarray, copied: object = None) -> np.ndarray:
    windows = scaled(windows)
    return np.stack([windows[:, place * 100] for place in range(width)], axis=1).astype(np.float32)


def _load_model(spec: ModelSpec) -> SimpleNamespace:
    info = DeviceInfo(DeviceType.CPU, True, "arithmetic", "for tests")
    device = DeviceChoice(DeviceType.CPU, info, 0, "for tests", None, [info])
    precision = PrecisionChoice("float32", "float32", "for tests")
    placement = SimpleNamespace(device=device, precision=precision, memory=MemoryPlan(4, 1, 1, None))
    metadata = SimpleNamespace(
        weights=WeightsReport("random", "random", None, 0, "for tests", is_random=True, checksum="0"),
        precision=precision.decision,
    )
    session = SimpleNamespace(
        spec=spec,
        metadata=metadata,
        effective_batch_size=4,
        in_flight=1,
        device_name="/CPU:0",
        oom_backoffs=[],
        resampling_faults=[],
        embed_windows=functools.partial(_embed, spec.width),
    )
    return SimpleNamespace(
        placement=placement,
        sessions=[session],
        postprocess=None,
        dtypes=("int16", "float32"),
        answers=None,
        programs=SimpleNamespace(commit=lambda: None),
    )


class ArithmeticStartup:
    """``SessionStartup`` of a session that is plain arithmetic."""

    def __init__(self, spec: RunSpec, dtypes: object, timer: object, events: object) -> None:
        self.report, self.metrics = Startup(), {}
        self._spec = spec.config.model.spec

    def prepare(self) -> SimpleNamespace:
        model = _load_model(self._spec)
        precision = model.placement.precision.decision
        self.report = Startup(device=DeviceReport.of(model.placement.device), precision=precision)
        return model


def no_canary(session: Any, *about: object) -> SimpleNamespace:
    return SimpleNamespace(embed=session.embed_windows, count=0, misses=[], trusted=0, finish=lambda: None)
