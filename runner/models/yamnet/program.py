"""YAMNet's program: scaling, log-mel and network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runner.devices.detection import DeviceType
from runner.models.program import Program
from runner.yamnet import forward, network

if TYPE_CHECKING:
    from runner.core.model_spec import ModelSpec
    from runner.models.base import Target, Weights


class YamnetProgram(Program):
    """YAMNet on one device.

    Args:
        spec: YAMNet's.
        weights: float32 arrays by the names of ``yamnet.h5``; emptied.
        target: the device and the number format of the network.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, target: Target) -> None:
        import tensorflow as tf

        super().__init__(spec, target)
        self._precision, self._is_cpu = target.precision, target.device is DeviceType.CPU
        with tf.device(self.device_name):
            self.weights = network.variables(weights, target.precision)
        weights.clear()

    def log_mel(self, windows: Any) -> Any:
        """Compute the log-mel of windows: tensor [n, 15600] to float32 tensor [n, 96, 64]."""
        return forward.log_mel(windows, self._precision, is_cpu=self._is_cpu)

    def computation(self, kind: str) -> Callable[[Any], Any]:
        """Return the function of tensors for a kind of input."""
        return lambda windows: forward.outputs_of_windows(self.weights, windows, self._precision, is_cpu=self._is_cpu)
