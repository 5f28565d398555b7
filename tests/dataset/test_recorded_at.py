"""Times of recording from file names."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config.groups.dataset import DatasetConfig
from runner.core.errors import ConfigError
from runner.dataset.recorded_at import recorded_at, recorded_at_reader

UTC = timezone.utc


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("20230115_053000.WAV", datetime(2023, 1, 15, 5, 30)),  # AudioMoth
        ("site/A12_20230115_053000.wav", datetime(2023, 1, 15, 5, 30)),  # Song Meter
        ("S4A01234_20230115_053001_-0500.wav", datetime(2023, 1, 15, 5, 30, 1)),
        ("2023-01-15T05_30_00Z.flac", datetime(2023, 1, 15, 5, 30, tzinfo=UTC)),
        ("20230115T053000+0200.wav", datetime(2023, 1, 15, 5, 30, tzinfo=timezone(timedelta(hours=2)))),
        ("ch1-2023-01-15-05-30-09.wav", datetime(2023, 1, 15, 5, 30, 9)),
        ("2023-01-15 05.30.wav", datetime(2023, 1, 15, 5, 30)),
        ("5073.230115053000.wav", datetime(2023, 1, 15, 5, 30)),  # SoundTrap
        ("PAM_230115_053000.wav", datetime(2023, 1, 15, 5, 30)),
        ("5C3B2A10.WAV", datetime(2019, 1, 13, 12, 7, 44, tzinfo=UTC)),  # AudioMoth before 1.2
    ],
)
def test_recorders_names_say_when_a_recording_began(name: str, when: datetime) -> None:
    assert recorded_at(name) == when
    assert recorded_at(name).tzinfo == when.tzinfo
    assert recorded_at_reader("auto")(pa.array([name])).to_pylist() == [when.isoformat()]


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2029, 12, 31)),
    st.sampled_from(
        ["%Y%m%d_%H%M%S", "%Y-%m-%dT%H_%M_%SZ", "%Y_%m_%d %H.%M", "%Y%m%d%H%M", "%y%m%d%H%M%S", "%y%m%d-%H%M%S"]
    ),
    st.sampled_from(["{}.wav", "site/{}", "A_{}.WAV#t=1,2", "{}_-0500.flac"]),
)
def test_no_name_with_a_time_is_missed_in_a_column_of_names(when: datetime, pattern: str, name: str) -> None:
    name = name.format(when.strftime(pattern))
    found = recorded_at(name.partition("#")[0])
    assert recorded_at_reader("auto")(pa.array([name])).to_pylist() == [found and found.isoformat()]


@pytest.mark.parametrize(
    "name",
    [
        "dog.wav",
        "1-100032-A-0.wav",
        "20231315_053000.wav",
        "20230115.wav",
        "00000001.wav",
        "DEADBEEF.wav",
        "7061-6-0-0.wav",
    ],
)
def test_other_names_have_no_time(name: str) -> None:
    assert recorded_at(name) is None


@pytest.mark.parametrize(
    ("option", "name", "when"),
    [
        ("auto", "site/20230115_053000.WAV", "2023-01-15T05:30:00"),
        ("auto", "2023-01-15T05_30_00Z.flac#t=3.5,9.25", "2023-01-15T05:30:00+00:00"),
        ("auto", "dog.wav", None),
        ("none", "20230115_053000.WAV", None),
        ("rec %d.%m.%y %H-%M", "site/rec 15.01.23 05-30.wav#t=1,2", "2023-01-15T05:30:00"),
        ("rec %d.%m.%y %H-%M", "20230115_053000.WAV", None),
    ],
)
def test_a_clip_has_the_time_at_which_its_file_begins(option: str, name: str, when: str | None) -> None:
    assert recorded_at_reader(option)(pa.array([name, "dog.wav"])).to_pylist() == [when, None]


def test_what_is_no_pattern_is_refused() -> None:
    DatasetConfig(recorded_at="%Y%m%d_%H%M%S")
    for text in ("automatic", "%", "%Y%Q"):
        with pytest.raises(ConfigError, match=r"dataset\.recorded_at=.* is no pattern"):
            DatasetConfig(recorded_at=text)
