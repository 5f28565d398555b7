"""The files of the AudioSet YAMNet release."""

from __future__ import annotations

from runner.weights.download import ReleasedFile

CLASS_MAP = ReleasedFile(
    "yamnet_class_map.csv",
    14_096,
    "cdf24d193e196d9e95912a2667051ae203e92a2ba09449218ccb40ef787c6df2",
    "https://raw.githubusercontent.com/tensorflow/models/dfffd623b6be8d1d9744b8e261fbac370d17c46d"
    "/research/audioset/yamnet/yamnet_class_map.csv",
)

WEIGHTS = ReleasedFile("yamnet.h5", 15_296_092, "13c3308955bbfaef262f175ac9c40e47b134573a93984f009220dd7cc12a1744")

RELEASE = (CLASS_MAP, WEIGHTS)
"""Checksums as several independent public repositories have them."""
