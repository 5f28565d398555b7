"""The short form of ``make fuzz``: a moment of each target but ``weights``, which needs TensorFlow 1's saver."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.stress.fuzz import TARGETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"weights"}))
def test_broken_input_is_embedded_or_refused_with_a_documented_error(target: str, tmp_path: Path) -> None:
    counted = TARGETS[target](random.Random(0), time.monotonic(), tmp_path)
    assert counted.total() > 0
    assert counted["UNEXPECTED"] == 0
