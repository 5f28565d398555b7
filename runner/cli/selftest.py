"""A second's work on one device, in a process of its own: ``python -m runner.cli.selftest DEVICE`` prints a JSON
object.

Random weights through the parity gate, then the model on data that lies on the device.  ``vggish-runner doctor``
calls it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Test the device named (cpu, gpu, metal); exit status 1 if it is absent or gives wrong numbers."""
    (device,) = sys.argv[1:] if arguments is None else arguments
    answers = os.fdopen(os.dup(1), "w")  # TensorFlow and its plug-ins print what they like
    os.dup2(2, 1)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        found = run(device)
    except Exception as error:
        found = {"ok": False, "device": device, "detail": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(found), file=answers, flush=True)
    return 0 if found["ok"] else 1


def run(device: str) -> dict[str, Any]:
    """The verdict: whether the device works, what it is, how fast, and how far its numbers are from the CPU's.

    Raises:
        DeviceError: it is absent.
    """
    from runner.config.composition import compose_config
    from runner.core.layout import CACHE
    from runner.inference.builder import DeviceRequest, build_sessions, place
    from runner.inference.gate import run_parity_gate
    from runner.inference.parity import parity_answers
    from runner.profiling.device_speed import model_only
    from runner.weights.loading import load_weights
    from runner.weights.selection import WeightsChoice

    config = compose_config(["weights=random", "memory=conservative"])
    start = time.perf_counter()
    placement = place(DeviceRequest(device, strict=True), config.memory)
    loaded = load_weights(WeightsChoice("random", "random", None, None, 0, "self-test", is_random=True))
    kept = Path(config.paths.models).expanduser() / CACHE
    answers = parity_answers(loaded, kept, placement.precision.effective)
    sessions = build_sessions(placement, loaded)
    gate = run_parity_gate(sessions, answers, config.parity, ("int16", "float32"))
    speed = model_only(sessions, SECONDS, "float32") * config.frontend.hop_s
    return {
        "ok": gate.failure is None,
        "device": device,
        "name": placement.device.device.name,
        "realtime_factor": speed,
        "parity_rel_err": gate.metrics.get("parity_rel_err"),
        "detail": gate.failure or "",
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    sys.exit(main())
