"""What honest sessions measure in the parity gate, over many random weights: what its tolerances are made from.

``python -m benchmarks.parity_noise [--device gpu] [--seeds 8] [--precisions float32,bfloat16]`` prints,
for each precision, the largest of each measure over the seeds and both types of windows, with the tolerance beside it.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import asdict

from runner.config.composition import compose_config
from runner.contract.result import Decision, DeviceReport, WeightsReport
from runner.inference.builder import DeviceRequest, place_on_device
from runner.inference.gate import measure_session
from runner.inference.parity import worst_of
from runner.inference.precision import choose_precision
from runner.inference.session import EmbeddingSession, SessionMetadata
from runner.models.answers import Answers
from runner.models.base import Target
from runner.models.signals import fixed_signals
from runner.models.vggish.program import VGGishProgram
from runner.vggish.arrays import random_weights
from runner.vggish.reference import reference_embeddings, reference_log_mel
from runner.vggish.spec import VGGISH


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--rows", type=int, default=96)
    options = parser.parse_args()
    config, signals = compose_config(["weights=random", "dataset=demo"]), fixed_signals()
    device = place_on_device(DeviceRequest(options.device, strict=True), config.memory, config.model.spec).device
    source = WeightsReport("random", "random", None, None, "drawn here", is_random=True)
    log_mel = reference_log_mel(signals)
    found: dict[str, list] = {}
    for seed in range(options.seeds):
        weights = random_weights(seed)
        exact = reference_embeddings(weights, signals)
        for precision in options.precisions.split(","):
            rounded = exact if precision == "float32" else reference_embeddings(weights, signals, precision)
            chosen = choose_precision(precision, device.device)
            winograd = options.device == "cpu" and precision == "float32"
            for conv in ("direct", "winograd")[: 1 + winograd]:
                choice = Decision(conv, conv, "each is measured")
                program = VGGishProgram(VGGISH, dict(weights), Target(device.effective, precision), choice)
                metadata = SessionMetadata(DeviceReport.of(device), chosen.decision, source, choice)
                session = EmbeddingSession(program, options.rows, metadata)
                for dtype in ("int16", "float32"):
                    parity = measure_session(session, Answers(exact, rounded, log_mel=log_mel), dtype)
                    found.setdefault(f"{precision} {conv}", []).append(parity)
                del session, program
                gc.collect()
    print(f"{options.device}, {options.seeds} seeds: the worst, and in brackets the tolerance")
    for kind, parities in found.items():
        tolerance = asdict(config.parity.tolerances[kind.split()[0]])
        worst = asdict(worst_of(parities))
        print(f"{kind}: " + ", ".join(f"{name} {worst[name]:.8g} [{limit:g}]" for name, limit in tolerance.items()))


if __name__ == "__main__":
    main()
