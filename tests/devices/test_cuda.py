"""The CUDA runtime's part, with a stand-in for it: what it is asked, and what becomes of its refusal."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from runner.audio.source_windows import WindowKind
from runner.devices import cuda
from runner.pipeline.slots import SlotMemory


@pytest.fixture
def memory():
    memory = SlotMemory(slots=2, rows=3, window_samples=15_600, processes=1)
    yield memory
    memory.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []

    def register(address, size, flags) -> int:
        made.append(("register", address.value, size.value, flags))
        return 0

    def unregister(address) -> int:
        made.append(("unregister", address.value))
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister, cudaGetLastError=lambda: 0)
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    return made


def test_all_slots_are_locked_and_unlocked(memory: SlotMemory, calls: list[tuple[object, ...]]) -> None:
    with cuda.pinned(memory.bytes) as trouble:
        assert trouble is None
    address = memory.windows(0, WindowKind("int16", (15_600,))).ctypes.data
    assert address % 4096 == 0
    assert calls == [("register", address, memory.bytes.nbytes, 1), ("unregister", address)]


def test_a_refusal_is_yielded(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda *arguments: 2, cudaGetLastError=lambda: 2)
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    with cuda.pinned(memory.bytes) as trouble:
        assert "gave error 2" in str(trouble)


def test_a_missing_runtime_is_yielded(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_RUNTIMES", ("libnosuchthing.so.12",))
    cuda._runtime.cache_clear()
    with cuda.pinned(memory.bytes) as trouble:
        assert "not found" in str(trouble)


class HostRuntime:
    """The runtime of a "GPU" whose memory is the host's: its copies are real, and it can refuse a call."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.copied: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            if name == self.refused:
                return 1
            if name == "cudaMemcpyAsync":
                target, source, size, *_ = arguments
                ctypes.memmove(target, source, size.value)
                self.copied.append((threading.current_thread().name, size.value))
            return 0

        return call


def noise(rows: int, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(rows).integers(-9000, 9000, (rows, 15600)).astype(dtype)


def test_a_batch_is_filled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(cuda, "_runtime", HostRuntime)
    upload = cuda.StagingBuffer(tf.zeros((3, 15600), tf.int16))
    for rows in (noise(3), -noise(3)):
        assert np.array_equal(upload.copy_from(rows).numpy(), rows)
    with pytest.raises(ValueError, match="float32"):
        upload.copy_from(noise(3, "float32"))
    with pytest.raises(ValueError, match="2, 15600"):
        upload.copy_from(noise(2))


def test_a_call_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(cuda, "_runtime", lambda: HostRuntime("cudaPointerGetAttributes"))
    with pytest.raises(cuda.CudaError, match="cudaPointerGetAttributes gave error 1"):
        cuda.StagingBuffer(tf.zeros((3, 15600), tf.int16))
