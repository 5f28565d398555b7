"""YouTube-8M's layout, read by TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.converters.youtube8m import export_youtube8m
from runner.output.reader import EmbeddingReader
from tests.evaluation.test_search import write_run


def test_frames_are_bytes_of_at_most_300_examples(tmp_path: Path) -> None:
    import tensorflow as tf

    frames = np.random.default_rng(0).integers(0, 256, (310, 128)).astype(np.uint8)
    clips = ["b.wav"] * 305 + ["a.wav"] * 5
    folder = write_run(tmp_path / "run", frames.astype(np.float32), clips)
    shard = folder / "embeddings" / "part-00000.parquet"
    column = pa.FixedSizeListArray.from_arrays(pa.array(frames.ravel()), 128)
    pq.write_table(pq.read_table(shard).append_column("embedding_u8", column), shard)

    assert export_youtube8m(EmbeddingReader(str(folder)), tmp_path / "y") == 2
    assert (tmp_path / "y" / "labels.csv").read_text() == "index,label\n0,a\n1,b\n"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "y" / "part-00000.tfrecord"))]
    context, sequence = tf.io.parse_single_sequence_example(
        records[0],
        context_features={"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)},
        sequence_features={"audio": tf.io.FixedLenSequenceFeature([], tf.string)},
    )
    assert (context["id"].numpy(), tf.sparse.to_dense(context["labels"]).numpy().tolist()) == (b"b.wav", [1])
    decoded = tf.io.decode_raw(sequence["audio"], tf.uint8).numpy()
    np.testing.assert_array_equal(decoded, frames[:300])
