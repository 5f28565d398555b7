"""Embeddings in TFRecord files, in the format of AudioSet's own where the model has its projection."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.errors import ResumeError
from runner.core.files import atomic, make_folder, write_shared
from runner.core.layout import RunLayout, shard_name
from runner.output.spill import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow, EmbeddingInfo


class TfrecordShards:
    """Writes ``tfrecord/part-NNNNN.tfrecord``: AudioSet's features, one SequenceExample an embedded clip.

    Context: ``video_id`` (the clip), ``start_time_seconds``, ``end_time_seconds``, ``labels`` (int64); feature list
    ``audio_embedding``, a 128-byte string an example, or without ``quantize`` a feature list for each output, by its
    name, with a list of floats an example.  ``tfrecord/labels.csv`` has the number of each label: the label itself
    where all are whole numbers, otherwise its rank in alphabetical order.
    Source of the format: the AudioSet download page (research.google.com/audioset/download.html).

    Args:
        folder: the run's folder.
        info: on its embeddings.
        labels: the data set's distinct labels.
        quantize: the first output, float32 [n, 128], to uint8 [n, 128]; None for a model without a projection.

    Raises:
        ResumeError: the labels.csv of an earlier attempt can't be read.
    """

    def __init__(
        self,
        folder: Path,
        info: EmbeddingInfo,
        labels: Sequence[str],
        quantize: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
    ) -> None:
        layout = RunLayout(folder)
        self._folder = layout.tfrecord
        make_folder(self._folder)
        self._info, self._quantize = info, quantize
        self._numbers = _with_earlier_numbers(layout.tfrecord_labels, label_numbers(labels))
        write_shared(layout.tfrecord_metadata, json.dumps(info.metadata, indent=2))
        write_shared(layout.tfrecord_labels, _labels_csv(self._numbers))

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a shard's file; see ``ShardFormat``."""
        import tensorflow as tf

        path = self._folder / shard_name(shard, ".tfrecord")
        with atomic(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
            for row in rows:
                if row.examples:
                    writer.write(self._record(row))
        return [path]

    def _record(self, row: ClipRow) -> bytes:
        import tensorflow as tf

        train = tf.train
        numbers = [] if row.label is None else [self._numbers[row.label]]
        context = {
            "video_id": train.Feature(bytes_list=train.BytesList(value=[row.clip.encode()])),
            "start_time_seconds": train.Feature(float_list=train.FloatList(value=[row.start_s])),
            "end_time_seconds": train.Feature(float_list=train.FloatList(value=[row.start_s + row.seconds])),
            "labels": train.Feature(int64_list=train.Int64List(value=numbers)),
        }
        features = {name: train.FeatureList(feature=each) for name, each in self._features(train, row).items()}
        sequence = train.SequenceExample(
            context=train.Features(feature=context), feature_lists=train.FeatureLists(feature_list=features)
        )
        serialized: bytes = sequence.SerializeToString(deterministic=True)
        return serialized

    def _features(self, train: Any, row: ClipRow) -> dict[str, list[Any]]:
        """Return the features of a clip's examples by the name of their list."""
        info, quantize = self._info, self._quantize
        if quantize is not None:
            return {
                "audio_embedding": [
                    train.Feature(bytes_list=train.BytesList(value=[embedding.tobytes()]))
                    for block in blocks(row.embeddings, info.block_rows)
                    for embedding in quantize(info.first(block))
                ]
            }
        return {
            output.name: [
                train.Feature(float_list=train.FloatList(value=values))
                for block in blocks(row.embeddings, info.block_rows)
                for values in block[:, columns]
            ]
            for output, columns in zip(info.outputs, info.slices, strict=True)
        }


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """Number labels: a label's own value where all are whole numbers, as AudioSet's are, otherwise its rank."""
    if all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels):
        numbers = {label: int(label) for label in sorted(labels, key=int)}
        if len(set(numbers.values())) == len(numbers):  # 1 and 01 are two labels
            return numbers
    return {label: number for number, label in enumerate(sorted(labels))}


def _with_earlier_numbers(path: Path, numbers: dict[str, int]) -> dict[str, int]:
    """Return the numbers of an earlier attempt, if there was one, with new labels after its own.

    Raises:
        ResumeError: its labels.csv can't be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            earlier = {row["label"]: int(row["index"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return numbers
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ResumeError(
            f"{path} can't be read ({type(error).__name__}: {error}), and the run's TFRecords need its numbers of "
            "labels: restore it, or choose another output.dir"
        ) from error
    merged = earlier | numbers
    if merged.items() >= earlier.items() and len(set(merged.values())) == len(merged):
        return merged
    new = sorted(numbers.keys() - earlier.keys())
    return earlier | {label: max(earlier.values()) + 1 + n for n, label in enumerate(new)}


def _labels_csv(numbers: Mapping[str, int]) -> str:
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(("index", "label"))
    for label, number in numbers.items():
        (quoted if "\r" in label else plain).writerow((number, label))  # the reader splits lines at an unquoted \r
    return text.getvalue()
