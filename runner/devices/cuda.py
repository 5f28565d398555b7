"""Page-locked memory and copies on a stream outside TensorFlow's, by the CUDA runtime.

From page-locked memory a GPU copies at the speed of its bus (42 GB/s measured, 6.5 without).  TensorFlow's copy to a
GPU waits for the computations that were queued before it, so that copy and compute take turns; on another stream, into
memory that TensorFlow allocated, the next batch is copied while this one is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUNTIMES = ("libcudart.so.12", "cudart64_12.dll", "cudart64_120.dll")
"""File names of the runtime; TensorFlow has opened one of them by the time that it sees a GPU."""

_PORTABLE = 1
"""``cudaHostRegisterPortable``: for every device of the process."""

_NON_BLOCKING = 1
"""``cudaStreamNonBlocking``: does not wait for the default stream."""

_BLOCKING = 4
"""``cudaDeviceScheduleBlockingSync``: threads that wait for the device sleep, and leave their cores to decoders; by
default they spin (1.8 of 16 cores beside an H200)."""

_TO_DEVICE = 1
"""``cudaMemcpyHostToDevice``."""


class CudaError(Exception):
    """The CUDA runtime is missing, or refused a call."""


@contextlib.contextmanager
def pinned(memory: NDArray[Any]) -> Iterator[str | None]:
    """Page-lock an array's memory within the context; yield None, or why that failed."""
    address, size = memory.ctypes.data, memory.nbytes
    runtime = _runtime()
    if runtime is None:
        yield "the CUDA runtime library was not found"
        return
    try:
        _call(runtime, "cudaHostRegister", ctypes.c_void_p(address), ctypes.c_size_t(size), _PORTABLE)
    except CudaError as error:
        yield f"{size >> 20} MiB: {error}"
        return
    try:
        yield None
    finally:
        runtime.cudaHostUnregister(ctypes.c_void_p(address))


class StagingBuffer:
    """A tensor on a GPU that batches are copied into while the GPU computes; for one thread.

    Args:
        tensor: on the GPU, computed already; batches are copied into its memory.

    Raises:
        CudaError: the runtime was not found, or refused a call.
    """

    def __init__(self, tensor: Any) -> None:
        runtime = _runtime()
        if runtime is None:
            raise CudaError("the CUDA runtime library was not found")
        self.tensor = tensor
        self._runtime = runtime
        self._address = _address_of(tensor)
        self._stream = ctypes.c_void_p()
        attributes = _PointerAttributes()
        _call(runtime, "cudaPointerGetAttributes", ctypes.byref(attributes), ctypes.c_void_p(self._address))
        _call(runtime, "cudaSetDevice", attributes.device)  # of this thread alone
        if runtime.cudaSetDeviceFlags(_BLOCKING):  # it works all the same
            runtime.cudaGetLastError()
        _call(runtime, "cudaStreamCreateWithFlags", ctypes.byref(self._stream), _NON_BLOCKING)
        weakref.finalize(self, runtime.cudaStreamDestroy, self._stream).atexit = False

    def copy_from(self, rows: NDArray[Any]) -> Any:
        """Copy rows, of the tensor's shape and type, and return the tensor once they are there.

        The results of the rows before must be on the host already.

        Raises:
            ValueError: another shape or type.
            CudaError: the runtime refused a call.
        """
        if rows.shape != tuple(self.tensor.shape) or rows.dtype != self.tensor.dtype.as_numpy_dtype:
            raise ValueError(f"{rows.dtype} {rows.shape} is not {self.tensor.dtype.name} {tuple(self.tensor.shape)}")
        source, size = ctypes.c_void_p(rows.ctypes.data), ctypes.c_size_t(rows.nbytes)
        target = ctypes.c_void_p(self._address)
        _call(self._runtime, "cudaMemcpyAsync", target, source, size, _TO_DEVICE, self._stream)
        _call(self._runtime, "cudaStreamSynchronize", self._stream)
        return self.tensor


class _PointerAttributes(ctypes.Structure):
    """``cudaPointerAttributes``, with room for fields of later versions."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("device", ctypes.c_int),
        ("device_pointer", ctypes.c_void_p),
        ("host_pointer", ctypes.c_void_p),
        ("reserved", ctypes.c_long * 8),
    )


def _address_of(tensor: Any) -> int:
    """Return the address of a tensor's memory on its device; DLPack's struct begins with it."""
    import tensorflow as tf

    capsule = tf.experimental.dlpack.to_dlpack(tensor)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(ctypes.c_void_p))[0]
    if not address:
        raise CudaError("the tensor has no memory")
    return int(address)


def _call(runtime: ctypes.CDLL, name: str, *arguments: Any) -> None:
    if status := int(getattr(runtime, name)(*arguments)):
        runtime.cudaGetLastError()  # clears the error, which TensorFlow would find otherwise
        raise CudaError(f"{name} gave error {status}")


@functools.cache
def _runtime() -> ctypes.CDLL | None:
    for name in _RUNTIMES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
