"""Whether a run on this machine is in one process or in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.contract.result import Startup
from runner.core.errors import DeviceError
from runner.engines import local
from tests.whole_run import make_config, make_data, session, tree


class Unusable:
    """Processes for GPUs that nvidia-smi lists, and that TensorFlow can't use."""

    def __init__(self, spec: Any, gpus: list[int], events: object) -> None:
        self.startup, self.metrics, self.gpus = Startup(), {}, gpus

    def load(self) -> None:
        raise DeviceError(f"none of {len(self.gpus)} is available")

    def close(self) -> None:
        pass


def test_one_process_embeds_where_tensorflow_cannot_use_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    session(make_config(data, tmp_path / "one", folder=tmp_path), tmp_path / "one")
    monkeypatch.setattr(local, "usable_gpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(local, "EmbedderProcesses", Unusable)
    several = ("device.name=auto", "device.index=all")
    result = session(make_config(data, tmp_path / "run", *several, folder=tmp_path), tmp_path / "run")
    assert isinstance(result, dict)
    assert result["status"] == "finished"
    assert tree(tmp_path / "run") == tree(tmp_path / "one")
    strict = make_config(data, tmp_path / "strict", *several, "device.strict=true", folder=tmp_path)
    result = session(strict, tmp_path / "strict")
    assert isinstance(result, dict)
    # there are six clips in shards of two
    assert (result["failure"]["kind"], result["failure"]["message"]) == ("device", "none of 3 is available")
