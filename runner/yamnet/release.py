"""The files of the AudioSet YAMNet release: addresses, sizes and checksums."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReleasedFile:
    """A file of the AudioSet YAMNet release."""

    name: str
    url: str
    bytes: int
    sha256: str


WEIGHTS = ReleasedFile(
    "yamnet.h5",
    "https://storage.googleapis.com/audioset/yamnet.h5",
    15_296_092,
    "13c3308955bbfaef262f175ac9c40e47b134573a93984f009220dd7cc12a1744",
)

CLASS_MAP = ReleasedFile(
    "yamnet_class_map.csv",
    "https://raw.githubusercontent.com/tensorflow/models/dfffd623b6be8d1d9744b8e261fbac370d17c46d"
    "/research/audioset/yamnet/yamnet_class_map.csv",
    14_096,
    "cdf24d193e196d9e95912a2667051ae203e92a2ba09449218ccb40ef787c6df2",
)

RELEASE = (CLASS_MAP, WEIGHTS)
"""Checksums as several independent public repositories have them."""
