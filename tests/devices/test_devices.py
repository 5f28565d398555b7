"""Device decisions, on every platform's facts; and the ConfigProto, proved by a v1 Session."""

import sys
from dataclasses import replace

import pytest

from runner.contract.result import DeviceReport
from runner.core.errors import DeviceError
from runner.devices import detection
from runner.devices.detection import DeviceType, GpuDetails, MachineFacts
from runner.devices.probe import detect_available_devices
from runner.devices.selection import choose_device
from tests.fresh_tensorflow import run_fresh

LINUX = MachineFacts("Linux", "x86_64", "Some CPU", "2.21.0", built_with_cuda=True)
H100 = GpuDetails("/physical_device:GPU:0", "NVIDIA H100", (9, 0))
GPU_SERVER = replace(LINUX, gpus=(H100, replace(H100, device="/physical_device:GPU:1")), nvidia_driver=True)
MAC = MachineFacts(
    "Darwin", "arm64", "Apple M2", "2.19.1", False, gpus=(GpuDetails(device_name="METAL"),), metal_plugin="1.2.0"
)


def chosen(facts: MachineFacts, requested: str, **options: object):
    return choose_device(requested, detect_available_devices(facts), **options)


@pytest.mark.parametrize(
    ("facts", "effective"), [(LINUX, "cpu"), (GPU_SERVER, "gpu"), (MAC, "metal"), (replace(MAC, gpus=()), "cpu")]
)
def test_auto_takes_the_best_device_present(facts: MachineFacts, effective: str) -> None:
    choice = chosen(facts, "auto")
    assert choice.effective.value == effective
    assert choice.fallback_reason is None
    assert effective in choice.reason


def test_auto_says_why_not_the_others() -> None:
    reason = chosen(LINUX, "auto").reason
    assert "Metal needs macOS" in reason
    assert "no NVIDIA driver" in reason


@pytest.mark.parametrize(
    ("facts", "requested", "words"),
    [
        (LINUX, "gpu", "no NVIDIA driver"),
        (LINUX, "metal", "Metal needs macOS"),
        (replace(LINUX, nvidia_driver=True, built_with_cuda=False), "gpu", "built without CUDA; pip install"),
        (replace(LINUX, nvidia_driver=True, missing_cuda_libraries=("libcudnn.so.9",)), "gpu", "libcudnn.so.9"),
        (replace(LINUX, nvidia_driver=True), "gpu", "nvidia-smi"),
        (replace(LINUX, system="Windows", nvidia_driver=True), "gpu", "WSL 2"),
        (replace(MAC, gpus=(), metal_plugin=None), "metal", "pip install 'vggish-runner[metal]'"),
        (replace(MAC, tensorflow="2.20.0"), "metal", "does not work with TensorFlow 2.20.0"),
        (replace(MAC, machine="x86_64", gpus=(), metal_plugin=None), "metal", "Intel Macs"),
        (MAC, "gpu", "device=metal"),
    ],
)
def test_an_absent_device_falls_back_to_the_cpu_and_says_what_to_do(
    facts: MachineFacts, requested: str, words: str
) -> None:
    if requested == "metal" and sys.version_info >= (3, 13) and facts.metal_plugin is None and facts.machine == "arm64":
        words = "Python 3.13"
    choice = chosen(facts, requested)
    assert choice.requested.value == requested
    assert choice.effective is DeviceType.CPU
    assert choice.fallback_reason is not None
    assert words in choice.fallback_reason


def test_strict_makes_an_absent_device_an_error() -> None:
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*device\.strict"):
        chosen(LINUX, "gpu", strict=True)


def test_index_picks_one_of_several_gpus() -> None:
    choice = chosen(GPU_SERVER, "gpu", index=1)
    assert choice.device.details.device == "/physical_device:GPU:1"
    assert choice.index == 1


def test_all_takes_every_gpu() -> None:
    choice = chosen(GPU_SERVER, "gpu", index="all")
    assert choice.indices == (0, 1)
    assert DeviceReport.of(choice).count == 2
    assert "2 of them" in choice.reason
    assert chosen(LINUX, "cpu", index="all").indices == (0,)
    assert chosen(LINUX, "gpu", index="all").effective is DeviceType.CPU


def test_an_index_beyond_the_last_gpu_falls_back() -> None:
    choice = chosen(GPU_SERVER, "gpu", index=2)
    assert choice.effective is DeviceType.CPU
    assert "only 2 (0 to 1)" in str(choice.fallback_reason)


def test_a_gpu_whose_memory_others_hold_is_not_taken() -> None:
    full = replace(H100, memory_free_mib=64, memory_mib=81_559)
    free = replace(H100, device="/physical_device:GPU:1", memory_free_mib=80_000, memory_mib=81_559)
    alone = chosen(replace(GPU_SERVER, gpus=(full,)), "auto")
    assert alone.effective is DeviceType.CPU
    assert "only 64 of its 81,559 MiB are free" in alone.reason
    server = replace(GPU_SERVER, gpus=(full, free))
    assert "device.index=1 has room" in str(chosen(server, "gpu").fallback_reason)
    assert chosen(server, "gpu", index=1).indices == (1,)
    assert chosen(server, "gpu", index="all").indices == (1,)


V1_SESSION = """
    from runner.devices.probe import get_tf_session_config
    config = get_tf_session_config({!r}, gpu_memory_fraction=0.5, allow_growth=True)
    import tensorflow.compat.v1 as tf
    assert isinstance(config, tf.ConfigProto)
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        print("sum", session.run(tf.reduce_sum(tf.constant([1.0, 2.0, 3.0]))))
        print("gpus", sum(device.device_type == "GPU" for device in session.list_devices()))
"""
MODEL = """
    import numpy as np
    from runner.inference.api import load_vggish_model
    session = load_vggish_model(
        device_preference="gpu", gpu_memory_fraction=0.5, gpu_allow_growth=True, weights="random"
    )
    embeddings = session.embed_waveform(np.sin(np.arange(48_000) * 0.4).astype(np.float32), 16_000)
    print(embeddings.shape, embeddings.dtype, bool(np.isfinite(embeddings).all()))
    device = session.metadata.device
    print(device.requested, device.effective in ("cpu", "gpu"), session.metadata.weights.source)
    print("fallback", device.effective == "gpu" or bool(device.fallback_reason))
"""


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What processes print in which TensorFlow is new: v1 sessions by device, and the ``model``."""
    detection = ("cpu", "auto", "gpu")
    outputs = run_fresh(*map(V1_SESSION.format, detection), MODEL)
    return dict(zip((*detection, "model"), outputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "auto", "gpu"])
def test_the_config_proto_runs_a_v1_session(printed: dict[str, str], device: str) -> None:
    assert "sum 6.0" in printed[device]
    if device == "cpu":
        assert "gpus 0" in printed[device]


@pytest.mark.slow
def test_load_vggish_model_returns_a_ready_session_with_its_device_in_the_metadata(printed: dict[str, str]) -> None:
    assert "(3, 128) float32 True" in printed["model"]
    assert "gpu True random" in printed["model"]
    assert "fallback True" in printed["model"]


def test_log_device_info_lists_absent_devices_too(caplog: pytest.LogCaptureFixture) -> None:
    from runner.devices.probe import log_device_info

    with caplog.at_level("INFO"):
        log_device_info(detect_available_devices(LINUX))
    assert any("✓ cpu" in message for message in caplog.messages)
    assert any("✗ gpu" in message and "NVIDIA driver" in message for message in caplog.messages)


def test_a_sweep_over_devices_leaves_out_those_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection.platform, "system", lambda: "Linux")
    monkeypatch.setattr(detection, "has_nvidia_driver", lambda: False)
    assert set(detection.unavailable_devices()) == {DeviceType.GPU, DeviceType.METAL}
    monkeypatch.setattr(detection, "has_nvidia_driver", lambda: True)
    assert set(detection.unavailable_devices()) == {DeviceType.METAL}
    monkeypatch.setattr(detection.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(detection.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(detection, "metal_plugin_version", lambda: "1.2.0")
    assert set(detection.unavailable_devices()) == {DeviceType.GPU}
