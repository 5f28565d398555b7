"""Files of statistics: this project's ``stats.npz``, and those that other tools write.

``stats.npz`` has the names that two readers look for: ``mu`` and ``sigma`` (pytorch-fid and its descendants), and
``vggish.mu`` and ``vggish.cov`` (fadtk); besides ``n``, ``sums`` (``EmbeddingStatistics.to_vector``) and ``about``, a
JSON object of texts that says what the embeddings are.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import RunnerError
from runner.statistics.example_record import read_example
from runner.statistics.moments import EmbeddingStatistics, Matrix, Rows, Vector

_MODEL = "vggish"

_SUMS, _ABOUT = "sums", "about"


class StatisticsError(RunnerError):
    """A file of statistics can't be read, or two of them can't be compared."""

    kind = "statistics"


@dataclass(frozen=True)
class Summary:
    """What a file says of a set of embeddings.

    ``mean`` is float64 [size], ``covariance`` float64 [size, size]; ``n`` is None where the file does not say how many
    embeddings there were; ``about`` is empty but for ``stats.npz``; ``rows`` are the embeddings themselves, where the
    file holds those.
    """

    mean: Vector
    covariance: Matrix
    n: int | None
    about: Mapping[str, str] = field(default_factory=dict)
    rows: Rows | None = None


def to_npz(statistics: EmbeddingStatistics, about: Mapping[str, str]) -> bytes:
    """The bytes of a ``stats.npz``, the same for the same statistics.

    Args:
        statistics: of the embeddings.
        about: what they are: model, weights, front end, precision.
    """
    mean, covariance = statistics.mean, statistics.covariance
    arrays: dict[str, Any] = {"mu": mean, "sigma": covariance, f"{_MODEL}.mu": mean, f"{_MODEL}.cov": covariance}
    arrays |= {"n": np.array(statistics.n), _SUMS: statistics.to_vector()}
    arrays[_ABOUT] = np.array(json.dumps(dict(about), sort_keys=True))
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def from_npz(name: str, data: bytes) -> Summary:
    """Read this project's ``stats.npz``, fadtk's ``{model}.mu`` and ``{model}.cov``, or ``mu`` and ``sigma``.

    Raises:
        StatisticsError: the file, called ``name`` in the message, has none of these.
    """
    arrays = _arrays(name, data)
    models = [key.removesuffix(".mu") for key in arrays if key.endswith(".mu")]
    if "mu" in arrays and "sigma" in arrays:
        pair = arrays["mu"], arrays["sigma"]
    elif models and f"{(model := _MODEL if _MODEL in models else models[0])}.cov" in arrays:
        pair = arrays[f"{model}.mu"], arrays[f"{model}.cov"]
    else:
        raise StatisticsError(
            f"{name} has no statistics (it has {', '.join(arrays) or 'nothing'}): give a stats.npz, or a file with "
            "vggish.mu and vggish.cov, or with mu and sigma"
        )
    try:
        n = int(arrays["n"]) if "n" in arrays else None
        about = json.loads(str(arrays[_ABOUT])) if _ABOUT in arrays else {}
    except (ValueError, TypeError) as error:
        raise StatisticsError(f"{name} is damaged ({error}): make it anew, or leave it out") from error
    return _checked(name, *pair, n, about)


def _arrays(name: str, data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise StatisticsError(f"{name} can't be read ({error}): give a file of statistics (.npz)") from error


def from_tfrecord(name: str, data: bytes) -> Summary:
    """Read google-research's statistics: one tf.train.Example with ``mu``, ``sigma`` and ``embedding_count``.

    Raises:
        StatisticsError: the file, called ``name`` in the message, is no such record.
    """
    try:
        features = read_example(data)
        mean, covariance, count = features["mu"], features["sigma"], int(features["embedding_count"][0])
    except (ValueError, KeyError, IndexError) as error:
        raise StatisticsError(
            f"{name} is not a TFRecord of statistics ({error!r}): give one that create_embeddings_main.py wrote with "
            "--stats"
        ) from error
    if len(covariance) == len(mean) ** 2:
        covariance = covariance.reshape(len(mean), -1)
    return _checked(name, mean, covariance, count, {})


def from_folder(folder: Path) -> Summary:
    """Read kadtk's or fadtk's folder of ``mu.npy`` and ``cov.npy``; raises as ``from_npz``."""
    return _checked(str(folder), _array(folder / "mu.npy"), _array(folder / "cov.npy"), None, {})


def from_rows(path: Path) -> Summary:
    """Read embeddings [n, size] from a ``.npy``, as fadtk and frechet_audio_distance keep them; raises likewise."""
    rows = _array(path)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise StatisticsError(
            f"{path} has an array {list(rows.shape)} that is no set of embeddings: give two or more finite rows"
        )
    statistics = EmbeddingStatistics.of(rows)
    return Summary(statistics.mean, statistics.covariance, statistics.n, rows=rows)


def _array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise StatisticsError(f"{path} can't be read ({error}): give an array (.npy)") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise StatisticsError(f"{path} has {array.dtype} values: give floating-point ones")
    return array


def _checked(
    name: str, mean: NDArray[Any], covariance: NDArray[Any], n: int | None, about: Mapping[str, str]
) -> Summary:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise StatisticsError(
            f"{name} has a mean {list(mean.shape)} and a covariance {list(covariance.shape)}, which don't belong "
            "together: make it anew"
        )
    if n is not None and n < 2:
        raise StatisticsError(f"{name} is of {n} examples, which have no covariance: two are needed at least")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise StatisticsError(f"{name} has values that are not finite: make it anew")
    return Summary(mean, covariance, n, about)
