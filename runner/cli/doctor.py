"""``vggish-runner doctor``: check this machine's devices, weights and tracking, and name the fix for each problem.

``gather`` reads the machine; ``diagnose`` is pure, so that the checks of every platform are tested on any platform.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from runner.devices.detection import DeviceType, MachineFacts
    from runner.devices.instruction_sets import InstructionSets
    from runner.devices.nvml import NvidiaGpu

_SELFTEST_S = 300.0

_CPU_UNITS = {"avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "avx2": "AVX2"}

_PACKAGES = ("av", "miniaudio", "ray", "tensorflow-metal", "nvidia-ml-py", "mlflow")

_FORMATS = ("WAV", "FLAC", "OGG", "MP3")


@dataclass(frozen=True)
class Check:
    """One line of the table: ``ok`` None is a missing part that is not needed; ``fix`` is one command or step."""

    name: str
    ok: bool | None
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Facts:
    """The facts of a diagnosis.

    ``nvidia`` are its GPUs; ``cuda_libraries`` is whether each library loads (empty without a GPU driver); ``weights``
    the state of each released file; ``tracking_uri`` is the MLflow store's, and ``tracking_error`` why it can't be
    reached.
    """

    machine: MachineFacts
    instruction_sets: InstructionSets
    cores: int = 1
    all_cores: int = 1
    memory_mib: int = 0
    python: str = ""
    nvidia: Sequence[NvidiaGpu] = ()
    cuda_libraries: Mapping[str, bool] = field(default_factory=dict)
    formats: Sequence[str] = ()
    packages: Mapping[str, str | None] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    models: str = ""
    tracking_uri: str = ""
    tracking_error: str | None = None


def gather() -> Facts:
    """Read the facts of this machine; imports TensorFlow."""
    import soundfile

    from runner.config.groups.tracking import TrackingConfig
    from runner.core.paths import default_models, default_outputs
    from runner.devices import nvml
    from runner.devices.detection import CUDA_LIBRARIES, can_load_library
    from runner.devices.host import usable_cores, usable_memory_mib
    from runner.devices.instruction_sets import instruction_sets
    from runner.devices.probe import gather_facts
    from runner.inference.tensorflow_import import import_tensorflow
    from runner.tracking.client import store_uri
    from runner.weights.download import state_of_released_files

    with _quiet():
        import_tensorflow()
        machine = gather_facts()
    uses_cuda = machine.nvidia_driver and machine.system == "Linux"
    uri = store_uri(TrackingConfig(), default_outputs())
    return Facts(
        machine=machine,
        instruction_sets=instruction_sets(),
        cores=usable_cores(),
        all_cores=os.cpu_count() or 1,
        memory_mib=usable_memory_mib(),
        python=platform.python_version(),
        nvidia=nvml.describe_gpus(),
        cuda_libraries={name: can_load_library(name) for name in CUDA_LIBRARIES} if uses_cuda else {},
        formats=tuple(name for name in _FORMATS if name in soundfile.available_formats()),
        packages={name: _version(name) for name in _PACKAGES},
        weights=state_of_released_files(default_models()),
        models=str(default_models()),
        tracking_uri=uri,
        tracking_error=_tracking_error(uri),
    )


def diagnose(facts: Facts) -> list[Check]:
    """Return the checks, without the self-tests."""
    return [
        *_processor(facts),
        *_devices(facts),
        *_audio(facts),
        *_weights(facts),
        _tracking(facts),
        Check(
            "Ray",
            True if facts.packages.get("ray") else None,
            facts.packages.get("ray") or "not installed; only needed beyond one machine",
        ),
    ]


def _processor(facts: Facts) -> list[Check]:
    machine = facts.machine
    limited = "" if facts.cores == facts.all_cores else f" of {facts.all_cores} (affinity or container limit)"
    cpu = facts.instruction_sets
    units = [name for flag, name in _CPU_UNITS.items() if flag in cpu.flags]
    if cpu.restriction:
        units.append(f"slowed by {cpu.restriction} in the environment")
    return [
        Check(
            "CPU",
            True,
            f"{machine.cpu}: {facts.cores} cores{limited}, {facts.memory_mib / 1024:,.0f} GiB"
            + (f", {', '.join(units)}" if units else ""),
        ),
        Check("Python", True, facts.python),
        Check("TensorFlow", True, machine.tensorflow + (", built with CUDA" if machine.built_with_cuda else "")),
    ]


def _devices(facts: Facts) -> list[Check]:
    from runner.devices.detection import DeviceType
    from runner.devices.probe import detect_available_devices
    from runner.devices.selection import choose_device

    machine = facts.machine
    checks = []
    for gpu in facts.nvidia:
        details = f"{gpu.name}, {gpu.memory_mib / 1024:,.0f} GiB, driver {gpu.driver}"
        known = f", compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
        checks.append(Check("NVIDIA", True, details + known))
    if missing := [name for name, loads in facts.cuda_libraries.items() if not loads]:
        fix = "pip install 'vggish-runner[cuda]'"
        checks.append(Check("CUDA libraries", False, f"not found: {', '.join(missing)}", fix))
    elif facts.cuda_libraries:
        checks.append(Check("CUDA libraries", True, f"all {len(facts.cuda_libraries)} found"))
    devices = detect_available_devices(machine)
    for info in devices:
        if info.available:
            checks.append(Check(f"device={info.type.value}", True, f"{info.name}: {info.reason}"))
            continue
        detail, _, fix = info.reason.partition("; ")
        expected = is_expected(info.type, facts)
        checks.append(
            Check(f"device={info.type.value}", False if expected else None, detail, fix if expected else None)
        )
    choice = choose_device(DeviceType.AUTO, devices)
    checks.append(Check("device=auto", True, f"chooses {choice.effective.value}: {choice.reason}"))
    return checks


def is_expected(device: DeviceType, facts: Facts) -> bool:
    """Whether this machine seems to have such a device, so that it is a problem if TensorFlow finds none."""
    if device.value == "metal":
        return facts.machine.system == "Darwin" and facts.machine.machine == "arm64"
    return bool(facts.nvidia) or facts.machine.nvidia_driver


def _audio(facts: Facts) -> list[Check]:
    missing = [name for name in _FORMATS if name not in facts.formats]
    return [
        Check(
            "audio",
            not missing,
            f"{', '.join(facts.formats)} and more" if not missing else f"libsndfile can't read {', '.join(missing)}",
            "pip install --upgrade soundfile" if missing else None,
        ),
        Check(
            "m4a, aac, webm",
            True if facts.packages.get("av") else None,
            f"PyAV {facts.packages['av']}" if facts.packages.get("av") else "need the extra av",
            None if facts.packages.get("av") else "pip install 'vggish-runner[av]'",
        ),
        Check(
            "flac",
            True if facts.packages.get("miniaudio") else None,
            "dr_flac" if facts.packages.get("miniaudio") else "libsndfile; 1.6 times as fast with the extra flac",
            None if facts.packages.get("miniaudio") else "pip install 'vggish-runner[flac]'",
        ),
    ]


def _weights(facts: Facts) -> list[Check]:
    checks = []
    for name, state in facts.weights.items():
        fix = None if state == "verified" else f"python -m runner downloads it; or put it into {facts.models}/vggish"
        checks.append(Check(name, True if state == "verified" else False if state == "wrong" else None, state, fix))
    return checks


def _tracking(facts: Facts) -> Check:
    from runner.core.redact import without_credentials

    version = facts.packages.get("mlflow") or "not installed"
    detail = f"MLflow {version}, {without_credentials(facts.tracking_uri)}"
    if facts.tracking_error is None:
        return Check("tracking", True, detail)
    fix = "start the server, or unset MLFLOW_TRACKING_URI" if "://" in facts.tracking_uri else "check its permissions"
    return Check("tracking", False, f"{detail}: {facts.tracking_error}", fix)


def _tracking_error(uri: str) -> str | None:
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "localhost", port), timeout=3).close()
        except OSError as error:
            return f"no answer ({error})"
        return None
    if parts.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        while not folder.exists():
            folder = folder.parent
        return None if os.access(folder, os.W_OK) else f"{folder} can't be written"
    return None


def self_test(device: DeviceType) -> Check:
    """Embed for a second on a device, in its own process."""
    name = f"self-test {device.value}"
    from runner.cli.selftest import Verdict

    command = [sys.executable, "-m", "runner.cli.selftest", device.value]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SELFTEST_S, check=False)
        verdict = Verdict(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError, TypeError) as error:
        problem = "no answer in time" if isinstance(error, subprocess.TimeoutExpired) else "the process died"
        return Check(name, False, f"{problem}: this device can't be used", "use device=cpu")
    if not verdict.ok:
        return Check(name, False, verdict.detail, "use device=cpu")
    return Check(
        name,
        True,
        f"{verdict.realtime_factor:,.0f} × realtime in float32, max error {verdict.parity_rel_err:.1e} of the "
        "largest value against the reference",
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard the lines that TensorFlow's libraries print while they load."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return exit status 0 if some device works."""
    parser = argparse.ArgumentParser(
        prog="vggish-runner doctor", description="Check this machine, and name the fix for each problem."
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    parser.add_argument("--no-self-test", action="store_true", help="leave out the self-test of each device")
    options = parser.parse_args(arguments)
    from runner.devices.probe import detect_available_devices

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts = gather()
    checks = diagnose(facts)
    present = dict.fromkeys(info.type for info in detect_available_devices(facts.machine) if info.available)
    tests = [] if options.no_self_test else [self_test(kind) for kind in present]
    works = any(test.ok for test in tests) if tests else bool(present)
    checks += tests
    if options.json:
        print(json.dumps({"works": works, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _print(checks)
    return 0 if works else 1


def _print(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    marks = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[dim]–[/dim]"}
    for check in checks:
        detail = Text(check.detail)
        if check.fix:
            detail.append(f"\n→ {check.fix}", style="yellow")
        table.add_row(marks[check.ok], Text(check.name), detail)
    Console(highlight=False).print(table)
