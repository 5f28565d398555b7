"""Copies of batches from the host to a device."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from runner.contract.result import Effect
from runner.devices.cuda import CudaError, StagingBuffer
from runner.vggish.arrays import aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.audio.framing import Windows


log = logging.getLogger(__name__)

_OWN_STREAM = Effect("own_stream", "copy and compute overlap")

_NO_COPIES = Effect("none", "a CPU computes where the batches are; TensorFlow sees to Metal's copies")


_MOST_BUFFERS = 4
"""Staging buffers of a thread; each is as large as a slot."""


def as_tensor(rows: NDArray[Any]) -> Any:
    """Return the rows as a tensor, without a copy where their memory is aligned (that of slots is)."""
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(aligned(rows, rows.dtype).__dlpack__())


class DeviceCopy:
    """Copies batches to one device; on CUDA through a staging buffer and a stream for each thread.

    Args:
        device_name: TensorFlow's name of the device.
        own_stream: whether to copy on a stream outside TensorFlow's (CUDA only).

    Attributes:
        method: how batches get to the device (own_stream, tensorflow or none), and why.
    """

    def __init__(self, device_name: str, *, own_stream: bool) -> None:
        self._device_name = device_name
        self._own_stream = own_stream
        self._thread_local = threading.local()
        self.method = _OWN_STREAM if own_stream else _NO_COPIES

    def by_tensorflow(self, rows: NDArray[Any]) -> Any:
        """Copy rows into a tensor of their own."""
        import tensorflow as tf

        with tf.device(self._device_name):
            return tf.identity(as_tensor(rows))

    def staged(self, windows: Windows) -> Any:
        """Copy windows, [n, samples] or [n, frames, channels], into this thread's staging buffer for their kind.

        The tensor is valid until the thread's next call with that kind.  Where CUDA refuses a stream, TensorFlow copies
        from then on, and ``method`` says so.
        """
        import tensorflow as tf

        if not self._own_stream:
            return self.by_tensorflow(windows)
        buffers: dict[Any, StagingBuffer] = self._thread_local.__dict__.setdefault("buffers", {})
        kind = (windows.dtype, windows.shape[1:])
        buffer = buffers.get(kind)
        if buffer is None or buffer.tensor.shape[0] != len(windows):
            buffers.pop(kind, None)
            while len(buffers) >= _MOST_BUFFERS:
                del buffers[next(iter(buffers))]
            with tf.device(self._device_name):
                tensor = tf.zeros(windows.shape, windows.dtype)
                tensor[:1, :1].numpy()  # waits until they are written
            try:
                buffer = buffers[kind] = StagingBuffer(tensor)
            except CudaError as error:
                self._own_stream = False
                self.method = Effect("tensorflow", str(error))
                log.warning("%s: batches are copied by TensorFlow, between computations", error)
                return self.by_tensorflow(windows)
        return buffer.copy_from(windows)

    def free_buffers(self) -> None:
        """Free all threads' staging buffers; none of them may be in use."""
        self._thread_local = threading.local()
