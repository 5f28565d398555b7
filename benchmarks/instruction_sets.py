"""The model on CPUs with fewer instructions: ``python -m benchmarks.instruction_sets`` prints examples per core-second.

``ONEDNN_MAX_CPU_ISA`` limits oneDNN's kernels to an instruction set; each limit runs in processes of its own, in
interleaved rounds, of which medians are printed.  A first round with ``ONEDNN_VERBOSE`` says which kernels ran, and
which share of the time: the rest (FFT, elementwise operations, copies) is as fast as this CPU, whatever the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.devices.host import host_facts

if TYPE_CHECKING:
    from runner.models.vggish.program import VGGishProgram

LIMITS: dict[str, dict[str, str]] = {
    "none": {},
    **{name: {"ONEDNN_MAX_CPU_ISA": name} for name in ("AVX512_CORE_BF16", "AVX512_CORE_VNNI", "AVX512_CORE", "AVX2")},
    "AVX2, oneDNN operations off": {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "0"},
}
VARIANTS = (("float32", "direct"), ("float32", "winograd"), ("bfloat16", "direct"))
"""Precision, and algorithm of the deep convolutions."""

_EXAMPLES = 128
_KERNEL = re.compile(r"verbose,v1,primitive,exec,cpu,(\w+),([^,]*),.*,([\d.]+)$")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", nargs="*", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--repeat", type=int, default=3, help="of each variant in a process")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options.repeat)
        return
    facts = host_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores; examples (windows to embeddings) per core-second", flush=True)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.limits}
    for number in range(options.rounds + 1):
        for name in options.limits:
            print(f"round {number} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            output = _run(name, options.repeat, verbose=not number)
            if number:
                results[name].append(json.loads(output[-1]))
            else:
                print(f"{name}: {_kernels(output)}", flush=True)
    print(_table(results))


def _run(limit: str, repeat: int, *, verbose: bool) -> list[str]:
    names = ("ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "ONEDNN_VERBOSE": str(int(verbose)), **LIMITS[limit]}
    command = [sys.executable, "-m", "benchmarks.instruction_sets", "--measure", "--repeat", str(repeat)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def _measure(repeat: int) -> None:
    """Print this process's examples per core-second by variant, and the calibration's choice, as JSON."""
    from runner.devices.detection import DeviceType
    from runner.inference.tensorflow_import import import_tensorflow

    import_tensorflow()
    from runner.models.vggish.convolution import choose_convolution

    stages = {" ".join(variant): _stage(*variant) for variant in VARIANTS}
    speeds: dict[str, list[float]] = {name: [] for name in stages}
    for number in range(repeat + 1):
        for name, stage in stages.items():
            print(f"begin {name}", flush=True)
            wall, busy = time.perf_counter(), time.process_time()
            if not stage():
                continue
            busy = time.process_time() - busy
            print(f"end {1e3 * (time.perf_counter() - wall):.1f}", flush=True)
            if number:  # the first one traces and compiles
                speeds[name].append(_EXAMPLES / busy)
    medians = {name: statistics.median(values) for name, values in speeds.items() if values}
    choice = choose_convolution("auto", DeviceType.CPU, "float32")
    print(json.dumps({"speeds": medians, "choice": choice.effective, "reason": choice.reason}))


def _stage(precision: str, conv: str) -> Callable[[], bool]:
    import tensorflow as tf

    function = tf.function(make_program(precision, conv).computation("windows"), autograph=False)
    windows = tf.constant(np.random.default_rng(0).uniform(-1, 1, (_EXAMPLES, 15_600)).astype(np.float32))

    def run() -> bool:
        try:
            function(windows).numpy()
        except tf.errors.OpError:  # oneDNN has no convolution for it
            return False
        return True

    return run


def make_program(precision: str, conv: str) -> VGGishProgram:
    """Make VGGish with random weights on the CPU."""
    from runner.contract.result import Decision
    from runner.devices.detection import DeviceType
    from runner.models.base import Target
    from runner.models.vggish.program import VGGishProgram
    from runner.vggish.arrays import random_weights
    from runner.vggish.spec import VGGISH

    algorithm = Decision(conv, conv, "the benchmark's")
    return VGGishProgram(VGGISH, random_weights(0), Target(DeviceType.CPU, precision), algorithm)


def _kernels(output: list[str]) -> str:
    """Describe the convolutions' and products' kernels, and oneDNN's share of the time, of each variant's last run."""
    runs: dict[str, tuple[dict[str, float], float]] = {}
    name, seconds = "", {}
    for line in output:
        if line.startswith("begin "):
            name, seconds = line.removeprefix("begin "), {}
        elif line.startswith("end "):
            runs[name], seconds = (seconds, float(line.removeprefix("end "))), {}
        elif kernel := _KERNEL.search(line):
            primitive = " ".join(kernel.group(1, 2)).strip()
            seconds[primitive] = seconds.get(primitive, 0) + float(kernel.group(3))
    words = []
    for variant, (kernels, wall_ms) in runs.items():
        largest = sorted(kernels, key=lambda each: -kernels[each])[:3]
        shares = ", ".join(f"{primitive} {kernels[primitive] / wall_ms:.0%}" for primitive in largest)
        words.append(f"\n    {variant}: oneDNN {sum(kernels.values()) / wall_ms:.0%} ({shares})")
    return "".join(words)


def _table(results: dict[str, list[dict[str, Any]]]) -> str:
    names = [" ".join(variant) for variant in VARIANTS]
    lines = [
        f"{'ONEDNN_MAX_CPU_ISA':30s}" + "".join(f"{name:>20s}" for name in names) + "  calibrated; fastest float32"
    ]
    for limit, rounds in results.items():
        speeds = {
            name: statistics.median(each["speeds"][name] for each in rounds)
            for name in names
            if all(name in each["speeds"] for each in rounds)
        }
        choices = [each["choice"] for each in rounds]
        fastest = max(("direct", "winograd"), key=lambda conv: speeds[f"float32 {conv}"])
        cells = "".join(f"{f'{speeds[name]:.0f}' if name in speeds else 'fails':>20s}" for name in names)
        lines.append(f"{limit:30s}{cells}  {', '.join(choices)}; {fastest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
