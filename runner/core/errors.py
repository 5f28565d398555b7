"""The errors a user may see: each message names the thing, what is wrong with it and what to do.

``kind`` is the word for such an error in result.json and in the tag ``failure.kind``.  ``runner.core.failures`` returns
it for any exception, and rebuilds the error in another process.
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """Base of every error that is shown as one message, without a traceback."""

    kind: ClassVar[str] = "exception"


class ConfigError(RunnerError):
    """The configuration cannot be carried out."""

    kind = "config"


class DatasetError(RunnerError):
    """The data set as a whole cannot be read (a single bad clip is skipped, not raised)."""

    kind = "dataset"


class WeightsError(RunnerError):
    """The weights cannot be had, or are not the model's."""

    kind = "weights"


class DeviceError(RunnerError):
    """The device asked for is absent and ``device.strict`` forbids the fallback."""

    kind = "device"


class SkippedError(RunnerError):
    """More clips could not be embedded than ``dataset.on_error`` and ``dataset.max_skipped`` allow."""

    kind = "skipped"


class EngineError(RunnerError):
    """The engine asked for can't work here, or an actor of it failed."""

    kind = "engine"


class StoreError(RunnerError):
    """The object store of ``output.dir`` can't be read or written."""

    kind = "store"


class ResumeError(RunnerError):
    """The run can't be resumed: its state can't be read, or configuration or data have changed since it began."""

    kind = "resume"


class ParityError(RunnerError):
    """The device's embeddings of the fixed signals are too far from the reference's."""

    kind = "parity"


class EvaluationError(RunnerError):
    """The quality of a run's embeddings can't be measured as asked for."""

    kind = "evaluation"


class DiskFullError(RunnerError):
    """Another process of the run could not write: the disk is full."""

    kind = "disk_full"


class OutOfMemoryError(RunnerError):
    """Another process of the run got no more memory."""

    kind = "out_of_memory"


class ClipError(Exception):
    """One clip cannot be embedded: ``reason`` is a short code, ``detail`` the evidence."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
