"""YAMNet as the runner takes it: its weights, class names, smoke test and program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.config.schema import FileWeights, RandomWeights
from runner.core.errors import WeightsError
from runner.devices.detection import DeviceType
from runner.models.base import Target
from runner.models.signals import as_int16, fixed_signals
from runner.models.yamnet import model as module
from runner.models.yamnet.model import Yamnet
from runner.weights.selection import WeightsChoice, WeightsRequest
from runner.yamnet.constants import CLASSES

NAMES = ["Silence", "White noise", "Sine wave", *(f"class {number}" for number in range(3, CLASSES))]


@pytest.fixture
def class_map(tmp_path: Path) -> Path:
    path = tmp_path / "yamnet_class_map.csv"
    rows = (f"{number},/m/{number},{name}" for number, name in enumerate(NAMES))
    path.write_text("\n".join(["index,mid,display_name", *rows]) + "\n")
    return path


@pytest.fixture
def released(class_map: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsChoice:
    """Seeded weights in the place of the released ones."""
    arrays = Yamnet().random_weights(0)
    monkeypatch.setattr(module, "load_weights_file", lambda path: dict(arrays))
    return WeightsChoice("audioset", "audioset", "yamnet.h5", None, None, "", False, str(class_map))


def test_scores_have_the_names_of_the_class_map(released: WeightsChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "smoke_failures", lambda ranks: [])
    model = Yamnet()
    loaded = model.load(released)
    assert model.spec.outputs[1].classes == tuple(NAMES)
    assert set(loaded.smoke or {}) == {"silence_rank", "white_noise_rank", "sine_wave_rank"}


def test_released_weights_that_fail_the_smoke_test_stop(released: WeightsChoice) -> None:
    with pytest.raises(WeightsError, match=r"yamnet\.h5 fails the release's smoke test \(.*_rank is \d+"):
        Yamnet().load(released)


def test_weights_of_ones_own_need_no_names(
    released: WeightsChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Path:
        raise WeightsError("no network")

    monkeypatch.setattr(module, "fetch", fail)
    (tmp_path / "own.h5").touch()
    model = Yamnet()
    choice = model.choose_weights(WeightsRequest(FileWeights(path=str(tmp_path / "own.h5")), tmp_path))
    assert choice.classes_path is None
    assert model.load(choice).smoke is None
    assert model.spec.outputs[1].classes == ()
    assert "the classes have no names" in model.notes[0]


@pytest.mark.slow
def test_the_program_is_the_references_in_both_types(tmp_path: Path) -> None:
    model = Yamnet()
    loaded = model.load(model.choose_weights(WeightsRequest(RandomWeights(seed=1), tmp_path)))
    signals = fixed_signals()[:4]
    expected = model.reference(loaded.arrays, signals, "float32")
    log_mel = model.reference_log_mel(signals)
    program = model.make_program(dict(loaded.arrays), Target(DeviceType.CPU))
    assert np.abs(program.embed(signals) - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(program.log_mel(signals).numpy() - log_mel).max() < 1e-4
    from_int16 = program.function("int16")(as_int16(signals)).numpy()
    np.testing.assert_allclose(from_int16, program.embed(signals), atol=1e-6)
