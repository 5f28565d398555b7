"""Files of statistics: this project's, and those of fadtk, kadtk, pytorch-fid and google-research."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from runner.statistics.files import StatisticsError, from_folder, from_npz, from_rows, from_tfrecord, to_npz
from runner.statistics.moments import EmbeddingStatistics

ROWS = np.random.default_rng(4).standard_normal((300, 128)).astype(np.float32)
STATISTICS = EmbeddingStatistics.of(ROWS)
ABOUT = {"model": "VGGish", "weights.checksum": "ab" * 32, "frontend.hop_s": "0.96"}


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_stats_npz_comes_back_and_is_the_same_bytes_each_time() -> None:
    data = to_npz(STATISTICS, ABOUT)
    assert data == to_npz(STATISTICS, dict(reversed(ABOUT.items())))
    summary = from_npz("stats.npz", data)
    assert (summary.n, summary.about) == (300, ABOUT)
    np.testing.assert_array_equal(summary.mean, STATISTICS.mean)
    np.testing.assert_array_equal(summary.covariance, STATISTICS.covariance)


def test_fadtks_reader_and_pytorch_fids_find_their_names_in_it() -> None:
    with np.load(io.BytesIO(to_npz(STATISTICS, ABOUT)), allow_pickle=False) as data:
        for mean, covariance in (("vggish.mu", "vggish.cov"), ("mu", "sigma")):
            np.testing.assert_array_equal(data[mean], STATISTICS.mean)
            np.testing.assert_array_equal(data[covariance], STATISTICS.covariance)
        np.testing.assert_array_equal(EmbeddingStatistics.from_vector(data["sums"]).products, STATISTICS.products)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    mean, covariance = STATISTICS.mean, STATISTICS.covariance
    fadtk = from_npz("fma_pop.npz", npz(**{"clap.mu": mean + 1, "clap.cov": covariance,
                                           "vggish.mu": mean, "vggish.cov": covariance}))  # fmt: skip
    np.save(tmp_path / "mu.npy", mean.astype(np.float32))
    np.save(tmp_path / "cov.npy", covariance.astype(np.float32))
    for summary in (fadtk, from_npz("fid.npz", npz(mu=mean, sigma=covariance)), from_folder(tmp_path)):
        np.testing.assert_allclose(summary.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(summary.covariance, covariance, rtol=1e-6)
        assert summary.n is None
        assert summary.about == {}


def test_embeddings_in_an_array_are_their_own_statistics(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    summary = from_rows(tmp_path / "rows.npy")
    np.testing.assert_array_equal(summary.covariance, STATISTICS.covariance)
    assert summary.n == 300


def google_statistics(path: Path) -> bytes:
    """What google-research's create_embeddings_beam.py writes, by TensorFlow."""
    import tensorflow as tf

    def floats(values: np.ndarray) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    feature = {"mu": floats(STATISTICS.mean), "sigma": floats(STATISTICS.covariance)}
    feature |= {"embedding_count": number(300), "embedding_length": number(128)}
    feature["name"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"all"]))
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return path.read_bytes()


def test_googles_record_is_read_without_tensorflow_and_any_damage_is_told(tmp_path: Path) -> None:
    data = google_statistics(tmp_path / "stats.tfrecord")
    summary = from_tfrecord("stats.tfrecord", data)
    assert summary.n == 300
    np.testing.assert_allclose(summary.mean, STATISTICS.mean, rtol=1e-6)
    np.testing.assert_allclose(summary.covariance, STATISTICS.covariance, rtol=1e-6)
    for place in (0, 9, 40, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(StatisticsError, match="not a TFRecord of statistics"):
            from_tfrecord("stats.tfrecord", bytes(damaged))
    with pytest.raises(StatisticsError, match="breaks off"):
        from_tfrecord("stats.tfrecord", data[:-1])


@pytest.mark.parametrize("data", [b"", b"no archive", npz(x=np.zeros(3)), npz(mu=np.zeros(3), sigma=np.eye(4)),
                                  npz(mu=np.zeros(2), sigma=np.full((2, 2), np.nan)),
                                  npz(mu=np.array([{}], object), sigma=np.eye(1)),
                                  npz(mu=np.zeros(2), sigma=np.eye(2), n=np.array(1))])  # fmt: skip
def test_what_is_no_file_of_statistics_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(StatisticsError, match=r"odd\.npz"):
        from_npz("odd.npz", data)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((1, 128)), np.full((3, 2), np.inf), np.zeros((3, 2), int)])
def test_an_array_that_is_no_set_of_embeddings_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(StatisticsError, match=r"rows\.npy"):
        from_rows(tmp_path / "rows.npy")


def test_a_record_of_something_else_is_no_statistics() -> None:
    with pytest.raises(StatisticsError, match="too short"):
        from_tfrecord("x.tfrecord", struct.pack("<Q", 3))
