"""AudioSet's TFRecord files of embeddings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.errors import ResumeError
from runner.core.files import atomic, make_folder, write_atomic
from runner.core.layout import TFRECORD
from runner.output.spill import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow


class TfrecordShards:
    """``tfrecord/part-NNNNN.tfrecord``: AudioSet's features, a SequenceExample an embedded clip.

    Context: ``video_id`` (the clip), ``start_time_seconds``, ``end_time_seconds``, ``labels`` (int64); feature list
    ``audio_embedding``, a 128-byte string an example.  ``tfrecord/labels.csv`` gives each label its number: the
    label itself where all are whole numbers, else their alphabetical order.
    Source of the format: the AudioSet download page (research.google.com/audioset/download.html).

    Args:
        folder: the run's folder.
        metadata: what ``tfrecord/metadata.json`` says.
        labels: the data set's distinct ones.
        quantize: makes uint8 [n, 128] of embeddings.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, str],
        labels: Sequence[str],
        quantize: Callable[[NDArray[np.float32]], NDArray[Any]],
    ) -> None:
        self._folder = folder / TFRECORD
        make_folder(self._folder)
        self._quantize = quantize
        self._numbers = _with_known(self._folder / "labels.csv", label_numbers(labels))
        write_atomic(self._folder / "metadata.json", json.dumps(metadata, indent=2))
        table = io.StringIO()
        plain, quoted = (
            csv.writer(table, lineterminator="\n", quoting=each) for each in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        plain.writerow(("index", "label"))
        for label, number in self._numbers.items():
            (quoted if "\r" in label else plain).writerow((number, label))  # what it would not quote, it can't read
        write_atomic(self._folder / "labels.csv", table.getvalue())

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write the shard's file, and give it."""
        import tensorflow as tf

        path = self._folder / f"part-{shard:05d}.tfrecord"
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
        features = [
            train.Feature(bytes_list=train.BytesList(value=[embedding.tobytes()]))
            for block in blocks(row.embeddings)
            for embedding in self._quantize(block)
        ]
        sequence = train.SequenceExample(
            context=train.Features(feature=context),
            feature_lists=train.FeatureLists(feature_list={"audio_embedding": train.FeatureList(feature=features)}),
        )
        serialized: bytes = sequence.SerializeToString(deterministic=True)
        return serialized


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """A number for each label: itself where all are whole numbers, as AudioSet's are, else its place in the order."""
    if all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels):
        numbers = {label: int(label) for label in sorted(labels, key=int)}
        if len(set(numbers.values())) == len(numbers):  # 1 and 01 are two labels
            return numbers
    return {label: number for number, label in enumerate(sorted(labels))}


def _with_known(path: Path, numbers: dict[str, int]) -> dict[str, int]:
    """The numbers that an earlier session gave, if there was one; labels that are new since come after them.

    Raises:
        ResumeError: its labels.csv can't be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            known = {row["label"]: int(row["index"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return numbers
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ResumeError(
            f"{path} can't be read ({type(error).__name__}: {error}), and says which labels the numbers in this run's "
            "TFRecords are: put it back, or name another output.dir"
        ) from error
    together = known | numbers
    if together.items() >= known.items() and len(set(together.values())) == len(together):
        return together
    return known | {label: max(known.values()) + 1 + n for n, label in enumerate(sorted(numbers.keys() - known.keys()))}
