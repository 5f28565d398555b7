"""``python -m runner.cli.selftest DEVICE``: test a device for a second, and print the verdict as JSON.

Random weights pass the parity gate, then the model computes on data that is on the device.  ``vggish-runner doctor``
starts one process per device.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """A device's verdict.

    Attributes:
        ok: whether it works.
        device: its kind.
        detail: why it does not work.
        name: its model.
        realtime_factor: seconds of audio per second that the model alone computes.
        parity_rel_err: largest error against the reference, as a share of the largest value.
        seconds: that the test took.
    """

    ok: bool
    device: str
    detail: str = ""
    name: str = ""
    realtime_factor: float = 0.0
    parity_rel_err: float | None = None
    seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Test a device (cpu, gpu, metal); return exit status 1 if it is missing or fails the parity gate."""
    (device,) = sys.argv[1:] if arguments is None else arguments
    answers = os.fdopen(os.dup(1), "w")  # TensorFlow and its plug-ins print to standard output too
    os.dup2(2, 1)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        verdict = run(device)
    except Exception as error:
        verdict = Verdict(False, device, f"{type(error).__name__}: {error}".splitlines()[0])
    print(json.dumps(asdict(verdict)), file=answers, flush=True)
    return 0 if verdict.ok else 1


def run(device: str) -> Verdict:
    """Test a device.

    Raises:
        DeviceError: it is missing.
    """
    from runner.config.composition import compose_config
    from runner.core.layout import CACHE
    from runner.inference.builder import DeviceRequest, build_sessions, place_on_device
    from runner.inference.gate import run_parity_gate
    from runner.models.vggish.model import VGGish
    from runner.profiling.device_speed import model_only
    from runner.weights.selection import WeightsChoice

    config = compose_config(["weights=random", "memory=conservative"])
    start = time.perf_counter()
    model = VGGish()
    placement = place_on_device(DeviceRequest(device, strict=True), config.memory, model.spec)
    loaded = model.load(WeightsChoice("random", "random", None, None, 0, "self-test", is_random=True))
    cache = config.paths.models_folder / CACHE
    answers = model.answers(loaded, cache, placement.precision.effective)
    sessions = build_sessions(placement, model, loaded, cache=cache)
    gate = run_parity_gate(sessions, answers, config.parity, ("int16", "float32"))
    speed = model_only(sessions, SECONDS, "float32") * config.frontend.file_hop_s
    return Verdict(
        ok=gate.failure is None,
        device=device,
        detail=gate.failure or "",
        name=placement.device.device.name,
        realtime_factor=speed,
        parity_rel_err=gate.metrics.get("parity_rel_err"),
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    sys.exit(main())
