"""The front end's settings on their way to what prepares audio, and to files and back."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

import pytest

from runner.audio.framing import Framing
from runner.audio.preparation import Preparation
from runner.config.composition import compose_config
from runner.config.groups.frontend import FrontendConfig
from runner.config.groups.model import ModelConfig
from runner.core.errors import ConfigError
from runner.core.model_spec import ModelSpec
from runner.vggish.spec import VGGISH
from tests.vggish_clips import FRAMING, PREPARATION

UNUSUAL = FrontendConfig(
    hop_s=0.5,
    short_clips="skip",
    tail="pad",
    resampler="soxr",
    channels="first",
    normalize="peak",
    window_s=1.0,
    min_duration_s=2.0,
    speed=0.5,
)


def test_every_key_reaches_the_preparation_or_the_framing_of_clips() -> None:
    default = FrontendConfig()
    for key, value in vars(UNUSUAL).items():
        changed = replace(default, **{key: value})
        assert (changed.preparation(VGGISH), changed.framing(VGGISH)) != (
            default.preparation(VGGISH),
            default.framing(VGGISH),
        ), key


def test_the_metadata_of_a_runs_files_give_its_front_end_back() -> None:
    metadata = {f"frontend.{key}": str(value) for key, value in asdict(UNUSUAL).items()}
    assert FrontendConfig.from_metadata({**metadata, "model": "VGGish"}) == UNUSUAL
    assert FrontendConfig.from_metadata({"frontend.hop_s": "0.48"}) == FrontendConfig(hop_s=0.48)


BIRDS = ModelSpec("birds", 32_000, 160_000, 80_000, (), takes_int16=False)


def test_seconds_are_those_of_the_models_rate() -> None:
    frontend = FrontendConfig(hop_s=2.5, window_s=5.0, resampler="soxr")
    assert frontend.framing(BIRDS) == Framing.of(BIRDS)
    assert frontend.preparation(BIRDS) == Preparation(32_000, "soxr", takes_int16=False)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (VGGISH, {"window_s": 0.974}, "window_s=0.974 is not from 0.975 to 60 seconds: use for example 1.0"),
        (VGGISH, {"window_s": 61.0}, "window_s=61.0 is not from 0.975 to 60 seconds: use for example 1.0"),
        (VGGISH, {"hop_s": 0.965}, "hop_s=0.965 is not a whole number of 10 ms frames, of a minute at most: "),
        (BIRDS, {}, "window_s=0.975 is not from 5 to 60 seconds: use for example 5.0"),
        (BIRDS, {"window_s": float("nan")}, "window_s=nan is not from 5 to 60 seconds"),
        (BIRDS, {"window_s": 5.0, "hop_s": 0.33333}, "hop_s=0.33333 is not a whole number of samples at 32000 Hz"),
    ],
)
def test_a_hop_or_window_that_the_model_cannot_have_is_refused(
    spec: ModelSpec, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"frontend.{message}")):
        FrontendConfig(**settings).framing(spec)


@dataclass
class BirdModel(ModelConfig):
    @property
    def spec(self) -> ModelSpec:
        return BIRDS


def test_a_run_checks_its_front_end_against_its_model() -> None:
    config = compose_config([])
    assert (config.framing, config.preparation) == (FRAMING, PREPARATION)
    with pytest.raises(ConfigError, match=r"frontend\.window_s=0\.975 is not from 5"):
        replace(config, model=BirdModel())
    other = replace(config, model=BirdModel(), frontend=FrontendConfig(hop_s=5.0, window_s=5.0))
    assert (other.framing.hop_samples, other.preparation.rate) == (160_000, 32_000)


def test_a_window_of_no_round_number_of_seconds_is_taken_as_it_is_written() -> None:
    spec = ModelSpec("odd", 22_050, 10_000, 10_000, ())  # 0.45351473… s
    assert FrontendConfig(hop_s=0.5, window_s=0.4535).framing(spec).is_plain
