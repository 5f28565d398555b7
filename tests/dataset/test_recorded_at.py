"""Times of recording from file names."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from runner.dataset.recorded_at import recorded_at

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
