"""The front end's settings on their way to what prepares audio, and to files and back."""

from __future__ import annotations

from dataclasses import asdict, replace

from runner.config.groups.frontend import FrontendConfig
from runner.vggish.spec import VGGISH

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
