"""A run in the layout of YouTube-8M's frame-level features (research.google.com/youtube8m/download.html)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import RunnerError
from runner.core.files import atomic
from runner.inference.tensorflow_import import import_tensorflow, without_library_notes
from runner.output.tfrecord import label_numbers

if TYPE_CHECKING:
    from runner.output.reader import EmbeddedClip, EmbeddingReader

MAX_FRAMES = 300
"""Frames of a video that YouTube-8M keeps: the first five minutes."""


def export_youtube8m(reader: EmbeddingReader, folder: Path) -> int:
    """Write ``part-00000.tfrecord`` and ``labels.csv``; return the number of clips.

    A clip is a SequenceExample: context ``id`` (bytes) and ``labels`` (int64), feature list ``audio`` with a string of
    128 bytes for each of its first 300 examples.  A frame is 0.96 s, as VGGish's examples are, and not YouTube-8M's one
    second.

    Raises:
        RunnerError: the run has no column ``embedding_u8``.
    """
    if "embedding_u8" not in reader.columns:
        raise RunnerError(
            f"{reader.location} has no 8-bit embeddings: run it again with output.postprocess=audioset and another "
            "output.dir"
        )
    with without_library_notes():
        import_tensorflow()
        import tensorflow as tf

    labels = {label for block in reader.blocks(("label",)) for label in block.columns["label"].unique().to_pylist()}
    numbers = label_numbers(sorted(label for label in labels if label is not None))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "labels.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("index", "label"), *((n, label) for label, n in numbers.items())]
        )
    count = 0
    with atomic(folder / "part-00000.tfrecord") as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for clip in reader.clips("embedding_u8"):
            writer.write(_record(tf.train, clip, [] if clip.label is None else [numbers[clip.label]]))
            count += 1
    return count


def _record(train: Any, clip: EmbeddedClip, labels: list[int]) -> bytes:
    frames = [
        train.Feature(bytes_list=train.BytesList(value=[frame.tobytes()])) for frame in clip.embeddings[:MAX_FRAMES]
    ]
    context = {
        "id": train.Feature(bytes_list=train.BytesList(value=[clip.name.encode()])),
        "labels": train.Feature(int64_list=train.Int64List(value=labels)),
    }
    record: bytes = train.SequenceExample(
        context=train.Features(feature=context),
        feature_lists=train.FeatureLists(feature_list={"audio": train.FeatureList(feature=frames)}),
    ).SerializeToString(deterministic=True)
    return record
