"""The errors a user may see: each message names the thing, what is wrong with it and what to do."""

from __future__ import annotations


class RunnerError(Exception):
    """Base of every error that is told in one message, without a traceback."""


class ConfigError(RunnerError):
    """The configuration cannot be carried out as given."""


class DatasetError(RunnerError):
    """The data set as a whole cannot be read (a single bad clip is skipped, not raised)."""


class WeightsError(RunnerError):
    """The weights cannot be had, or are not VGGish's."""


class DeviceError(RunnerError):
    """The device asked for is absent and ``device.strict`` forbids the fallback."""


class SkippedError(RunnerError):
    """More clips could not be embedded than ``dataset.on_error`` and ``dataset.max_skipped`` allow."""


class EngineError(RunnerError):
    """The engine asked for can't work here, or an actor of it failed."""


class StoreError(RunnerError):
    """The object store of ``output.dir`` can't be read or written."""


class ResumeError(RunnerError):
    """The run can't be taken up: what it was begun with is not what there is now."""


class ParityError(RunnerError):
    """The device's embeddings of the fixed signals are too far from the reference's."""


class ClipError(Exception):
    """One clip cannot be embedded: ``reason`` is a short code, ``detail`` says what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
