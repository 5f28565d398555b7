"""Resampling on a device, here the CPU: its samples are the host's, or the host takes over and says so."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from runner.audio.framing import Framing, scaled
from runner.audio.preparation import Preparation
from runner.audio.source_windows import SourceWindows, window_filter
from runner.core.model_spec import ModelSpec
from runner.devices.detection import DeviceType
from runner.inference.resampling import DeviceResampler, resamples_on_device
from tests.vggish_clips import FRAMING, PREPARATION

ROWS, COUNT = 5, 3


BIRDS = ModelSpec("birds", 32_000, 160_000, 80_000, ())
MODELS = {16_000: (PREPARATION, FRAMING), 32_000: (Preparation(32_000), Framing.of(BIRDS))}


def batch_of(dtype: str, channels: int, rate: int = 44_100, target: int = 16_000) -> SourceWindows:
    at_rate = window_filter(rate, *MODELS[target])
    assert at_rate is not None
    samples = np.random.default_rng(1).integers(-(1 << 15), 1 << 15, (ROWS, at_rate.frames, channels)).astype(np.int16)
    return SourceWindows(samples if dtype == "int16" else scaled(samples), at_rate, COUNT)


@pytest.mark.parametrize(("dtype", "channels"), [("int16", 1), ("int16", 2), ("float32", 1)])
@pytest.mark.parametrize(("rate", "target"), [(44_100, 16_000), (44_100, 32_000), (16_000, 32_000), (48_000, 32_000)])
def test_a_device_gives_the_hosts_samples(tf: ModuleType, dtype: str, channels: int, rate: int, target: int) -> None:
    source, resampler = batch_of(dtype, channels, rate, target), DeviceResampler("/CPU:0", use_xla=False)
    resampled = resampler.resample(source, tf.constant(source.windows))
    assert isinstance(resampled, tf.Tensor)
    assert resampled.shape == (COUNT, {16_000: 15_600, 32_000: 160_000}[target])
    np.testing.assert_allclose(resampled.numpy(), source.filter.apply(source.windows[:COUNT]), atol=1e-7)
    assert not resampler.faults


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_the_host_takes_over_from_a_program_that_differs_or_fails(
    tf: ModuleType, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = tf.matmul

    def faulty(first, second):
        if fault == "broken":
            raise tf.errors.UnimplementedError(None, None, "no float64 here")
        return matmul(first, second) * 1.0001

    monkeypatch.setattr(tf, "matmul", faulty)
    source, resampler = batch_of("int16", 2), DeviceResampler("/CPU:0", use_xla=False)
    for _ in range(2):
        resampled = resampler.resample(source, tf.constant(source.windows))
        assert np.array_equal(resampled, source.filter.apply(source.windows[:COUNT]))
    (message,) = resampler.faults
    assert message.startswith("CPU:0 resamples 44100 Hz on the host, slowly: ")
    assert ("no float64 here" in message) == (fault == "broken")


def test_auto_resamples_on_cuda_alone_and_metal_never_does() -> None:
    assert resamples_on_device("auto", DeviceType.GPU)
    assert not resamples_on_device("auto", DeviceType.CPU)
    assert resamples_on_device("device", DeviceType.CPU)
    assert not resamples_on_device("host", DeviceType.GPU)
    assert not resamples_on_device("device", DeviceType.METAL)
