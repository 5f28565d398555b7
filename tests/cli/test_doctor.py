"""The doctor's diagnosis on every platform's facts; and its self-test and exit status on this machine."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from runner.cli import selftest
from runner.cli.doctor import Check, Facts, diagnose, main
from runner.devices.detection import CUDA_LIBRARIES, GpuDetails, MachineFacts
from runner.devices.instruction_sets import InstructionSets
from runner.devices.nvml import NvidiaGpu

LINUX = Facts(
    MachineFacts("Linux", "x86_64", "Some CPU", "2.21.0", built_with_cuda=True),
    cores=2,
    all_cores=16,
    memory_mib=24 * 1024,
    instruction_sets=InstructionSets(frozenset({"avx512f", "amx_bf16"})),
    python="3.11.7",
    formats=("WAV", "FLAC", "OGG", "MP3"),
    packages={"mlflow": "3.17.2", "av": "14.0"},
    weights={"vggish_model.ckpt": "verified", "vggish_pca_params.npz": "not here yet"},
    models="/models",
    tracking_uri="sqlite:////outputs/mlflow.db",
)
H100 = NvidiaGpu("NVIDIA H100", 81_559, "580.1", "9.0")
MAC = replace(
    LINUX,
    machine=MachineFacts(
        "Darwin", "arm64", "Apple M2", "2.19.1", False, gpus=(GpuDetails(device_name="METAL"),), metal_plugin="1.2.0"
    ),
)


def table(facts: Facts) -> dict[str, Check]:
    return {check.name: check for check in diagnose(facts)}


def test_a_plain_linux_machine_lacks_nothing_that_it_needs() -> None:
    checks = table(LINUX)
    assert not [check for check in checks.values() if check.ok is False]
    assert "2 cores of 16" in checks["CPU"].detail
    assert "AVX-512, AMX-BF16" in checks["CPU"].detail
    assert checks["device=cpu"].ok
    assert checks["device=gpu"].ok is None
    assert checks["device=auto"].detail.startswith("chooses cpu: ")
    assert (checks["vggish_model.ckpt"].ok, checks["vggish_pca_params.npz"].ok) == (True, None)
    assert checks["Ray"].ok is None


def test_a_limit_of_instructions_is_named() -> None:
    limited = InstructionSets(frozenset({"avx512f", "amx_bf16"}), "AVX2")
    assert "slowed by ONEDNN_MAX_CPU_ISA=AVX2" in table(replace(LINUX, instruction_sets=limited))["CPU"].detail
    assert "slowed" not in table(LINUX)["CPU"].detail


def test_a_gpu_without_its_libraries_is_told_which_and_how_to_get_them() -> None:
    machine = replace(LINUX.machine, nvidia_driver=True, missing_cuda_libraries=("libcudnn.so.9", "libcufft.so.11"))
    libraries = {name: name not in machine.missing_cuda_libraries for name in CUDA_LIBRARIES}
    checks = table(replace(LINUX, machine=machine, nvidia=(H100,), cuda_libraries=libraries))
    assert "H100, 80 GiB, driver 580.1, compute capability 9.0" in checks["NVIDIA"].detail
    assert checks["CUDA libraries"].ok is False
    assert "libcudnn.so.9" in checks["CUDA libraries"].detail
    assert "libcufft.so.11" in checks["CUDA libraries"].detail
    assert checks["device=gpu"].ok is False
    assert checks["device=gpu"].fix == checks["CUDA libraries"].fix == "pip install 'vggish-runner[cuda]'"


def test_a_gpu_that_works_is_what_auto_takes() -> None:
    gpu = GpuDetails(device_name="NVIDIA H100", compute_capability=(9, 0))
    machine = replace(LINUX.machine, nvidia_driver=True, gpus=(gpu,))
    checks = table(replace(LINUX, machine=machine, nvidia=(H100,), cuda_libraries=dict.fromkeys(CUDA_LIBRARIES, True)))
    assert checks["device=gpu"].ok
    assert checks["CUDA libraries"].ok
    assert checks["device=auto"].detail.startswith("chooses gpu: ")


@pytest.mark.parametrize(
    ("machine", "ok", "words"),
    [
        (MAC.machine, True, "tensorflow-metal 1.2.0"),
        (replace(MAC.machine, gpus=(), metal_plugin=None), False, "tensorflow-metal"),
        (replace(MAC.machine, tensorflow="2.21.0"), False, "does not work with TensorFlow 2.21.0"),
        (replace(MAC.machine, machine="x86_64", gpus=(), metal_plugin=None), None, "Intel Macs"),
    ],
)
def test_macs(machine: MachineFacts, ok: bool | None, words: str) -> None:
    check = table(replace(MAC, machine=machine))["device=metal"]
    assert check.ok is ok
    assert words in check.detail
    assert (check.fix is not None) == (ok is False)


def test_windows_is_sent_to_wsl() -> None:
    machine = replace(LINUX.machine, system="Windows", nvidia_driver=True, built_with_cuda=False)
    check = table(replace(LINUX, machine=machine, nvidia=(H100,)))["device=gpu"]
    assert (check.ok, check.fix) == (False, "run inside WSL 2")


def test_what_is_wrong_has_a_way_to_mend_it() -> None:
    broken = replace(
        LINUX,
        formats=("WAV",),
        weights={"vggish_model.ckpt": "wrong"},
        tracking_uri="http://user:secret@mlflow:5000",
        tracking_error="no answer (refused)",
    )
    wrong = [check for check in diagnose(broken) if check.ok is False]
    assert {check.name for check in wrong} == {"audio", "vggish_model.ckpt", "tracking"}
    assert all(check.fix for check in wrong)
    assert not [check for check in wrong if "secret" in check.detail]


@pytest.mark.slow
def test_the_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Its self-test is a process of its own, with TensorFlow."""
    assert main(["--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["works"] is True
    checks = {check["name"]: check for check in answer["checks"]}
    assert checks["self-test cpu"]["ok"] is True
    assert "× realtime" in checks["self-test cpu"]["detail"]


@pytest.mark.slow
def test_a_device_that_is_absent_fails_its_self_test(capfd: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["metal"]) == 1
    assert "Metal needs macOS" in json.loads(capfd.readouterr().out)["detail"]
