"""What ended a run: one table of kinds, whichever process says it."""

from __future__ import annotations

import errno
import io
import zipfile

import numpy as np
import pytest

from runner.core import errors
from runner.core.failures import Failure, error_of, failure_of

KINDS = {
    errors.ConfigError: "config",
    errors.DatasetError: "dataset",
    errors.WeightsError: "weights",
    errors.DeviceError: "device",
    errors.SkippedError: "skipped",
    errors.EngineError: "engine",
    errors.StoreError: "store",
    errors.ResumeError: "resume",
    errors.ParityError: "parity",
}


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


@pytest.mark.parametrize(("error", "kind"), KINDS.items())
def test_each_error_class_has_a_kind_of_its_own(error: type[errors.RunnerError], kind: str) -> None:
    assert failure_of(error("what, and what to do")) == Failure(kind, "what, and what to do")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (ResourceExhaustedError("run/tfrecord/.part-00000.tfrecord.tmp; No space left on device"), "disk_full"),
        (ResourceExhaustedError("run/tfrecord/.part-00000.tfrecord.tmp; Disk quota exceeded"), "disk_full"),
        (ResourceExhaustedError("OOM when allocating tensor with shape[512,64]"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.EIO, "Input/output error"), "exception"),
        (ZeroDivisionError("division by zero"), "exception"),
    ],
)
def test_a_failure_is_of_one_kind_wherever_it_came_from(error: Exception, kind: str) -> None:
    found = failure_of(error)
    assert found.kind == kind
    assert str(error) in found.message
    assert failure_of(error_of(found)) == found  # an actor's, as the driver tells it


def test_a_full_disk_under_npz_is_a_full_disk() -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises((OSError, ValueError)) as raised,
        zipfile.ZipFile(Full(), "w") as file,
        file.open("embedding.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array(member, np.zeros(4))
    assert failure_of(raised.value).kind == "disk_full"


def test_every_kind_comes_back_as_its_class() -> None:
    for error, kind in KINDS.items():
        assert type(error_of(Failure(kind, "x"))) is error
