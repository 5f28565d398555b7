"""Post-processing against the release's formulas, and PCA parameters that are not what they should be."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from runner.core.errors import WeightsError
from runner.vggish.postprocess import PcaParameters, Postprocessor, load_pca, project, quantize, random_pca


@pytest.fixture
def pca() -> PcaParameters:
    rng = np.random.default_rng(0)
    return PcaParameters(rng.normal(0, 0.2, (128, 128)), rng.normal(0, 0.1, 128))


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_8_bit_form_is_projected_clipped_and_truncated(pca: PcaParameters) -> None:
    embeddings = np.random.default_rng(1).normal(0, 1, (5, 128)).astype(np.float32)
    processed = Postprocessor("audioset", pca)(embeddings)
    assert processed.dtype == np.uint8
    assert 0 in processed
    assert 255 in processed  # what lies outside ±2 is clipped
    for row, embedding in zip(processed, embeddings, strict=True):
        for component, value in enumerate(row):
            projected = sum(pca.eigen_vectors[component, i] * (float(embedding[i]) - pca.means[i]) for i in range(128))
            assert value == int((min(max(projected, -2.0), 2.0) + 2.0) * 63.75)


def test_eight_bits_are_truncated_not_rounded() -> None:
    assert quantize(np.array([-9.0, -2.0, 0.0, 1.999, 2.0, 9.0])).tolist() == [0, 0, 127, 254, 255, 255]


def test_pca_alone_is_not_clipped(pca: PcaParameters) -> None:
    embeddings = np.random.default_rng(1).normal(0, 3, (4, 128)).astype(np.float32)
    processed = Postprocessor("pca", pca)(embeddings)
    assert processed.dtype == np.float32
    assert np.abs(processed).max() > 2
    expected = np.stack([pca.eigen_vectors @ (embedding.astype(np.float64) - pca.means) for embedding in embeddings])
    assert np.allclose(processed, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(128, 1), (128,)])
def test_means_come_in_two_shapes(tmp_path: Path, pca: PcaParameters, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "p.npz", pca_eigen_vectors=pca.eigen_vectors, pca_means=pca.means.reshape(shape))
    parameters = load_pca(path)
    assert np.array_equal(parameters.means, pca.means)
    assert np.array_equal(parameters.eigen_vectors, pca.eigen_vectors)


def test_what_is_wrong_with_the_parameters_is_named(tmp_path: Path, pca: PcaParameters) -> None:
    vectors, means = pca.eigen_vectors, pca.means
    with pytest.raises(WeightsError, match=r"pca_eigen_vectors has shape \[64, 128\], not \[128, 128\]"):
        load_pca(save(tmp_path / "a.npz", pca_eigen_vectors=vectors[:64], pca_means=means))
    with pytest.raises(WeightsError, match=r"pca_means has shape \[128, 2\], not \[128, 1\]"):
        load_pca(save(tmp_path / "b.npz", pca_eigen_vectors=vectors, pca_means=np.zeros((128, 2))))
    with pytest.raises(WeightsError, match="has no pca_means"):
        load_pca(save(tmp_path / "c.npz", pca_eigen_vectors=vectors))
    with pytest.raises(WeightsError, match="not finite"):
        load_pca(save(tmp_path / "d.npz", pca_eigen_vectors=vectors * np.nan, pca_means=means))
    (tmp_path / "e.npz").write_bytes(b"not an archive")
    with pytest.raises(WeightsError, match=r"e\.npz can't be read"):
        load_pca(tmp_path / "e.npz")
    with pytest.raises(WeightsError, match="can't be read"):
        load_pca(tmp_path / "absent.npz")


class Payload:
    """Pickled code that leaves a trace where it is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_nothing_is_unpickled(tmp_path: Path, pca: PcaParameters) -> None:
    trace = tmp_path / "trace"
    objects = np.empty((1,), object)
    objects[0] = Payload(trace)
    pickle.loads(pickle.dumps(objects))
    assert trace.exists()
    trace.unlink()
    with pytest.raises(WeightsError, match="can't be read"):
        load_pca(save(tmp_path / "p.npz", pca_eigen_vectors=pca.eigen_vectors, pca_means=objects))
    (tmp_path / "q.npz").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(WeightsError, match="can't be read"):
        load_pca(tmp_path / "q.npz")
    assert not trace.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_8_bit_form(value: float) -> None:
    embeddings = np.zeros((3, 128), np.float32)
    embeddings[1, 7] = value
    with pytest.raises(ValueError, match="1 projected embeddings hold NaN or infinity"), np.errstate(invalid="ignore"):
        quantize(project(embeddings, random_pca(3)))


def test_random_parameters_are_a_rotation() -> None:
    pca = random_pca(3)
    assert np.allclose(pca.eigen_vectors @ pca.eigen_vectors.T, np.eye(128))
    embedding = np.ones((1, 128), np.float32)
    assert np.linalg.norm(project(embedding, pca)) == pytest.approx(np.sqrt(128))
    assert np.array_equal(random_pca(3).eigen_vectors, pca.eigen_vectors)
