"""The formats of embeddings: what all writers have in common, and the choice by ``output.formats`` and ``output.pool``.

To add a format, write a class with ``write`` as in ``ShardFormat`` in a module of its own, and create it in
``make_formats``; CONTRIBUTING.md lists the other places.  An embedding shard is complete and on disk when ``write``
returns.  A clip's embeddings are read in blocks, so that memory does not grow with the length of a clip (except for
TFRecords, whose record is a complete clip: 130 bytes an example, or four a value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.output.npz import NpzFiles
from runner.output.parquet import ParquetShards
from runner.output.pooled import PooledShards
from runner.output.rows import PostprocessedColumn
from runner.output.tfrecord import TfrecordShards
from runner.vggish.postprocess import COLUMNS

if TYPE_CHECKING:
    from runner.config.schema import OutputConfig
    from runner.output.rows import EmbeddingInfo, ShardFormat


def make_formats(
    output: OutputConfig,
    folder: Path,
    info: EmbeddingInfo,
    labels: Sequence[str],
    postprocess: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
) -> list[ShardFormat]:
    """Make the writers of ``output.formats``, and of ``output.pool`` where it names any windows.

    Args:
        output: the configuration.
        folder: the run's.
        info: on its embeddings.
        labels: the data set's distinct labels.
        postprocess: the first output, float32 [n, 128], to its post-processed form [n, 128]; None for none.
    """
    extra = PostprocessedColumn(COLUMNS[output.postprocess], postprocess) if postprocess else None
    formats: list[ShardFormat] = []
    for name in dict.fromkeys(output.formats):
        if name == "npz":
            formats.append(NpzFiles(folder, info, extra))
        elif name == "tfrecord":
            formats.append(TfrecordShards(folder, info, labels, postprocess))
        elif name == "parquet":
            formats.append(ParquetShards(folder, info, output.compression, extra))
        else:
            raise NotImplementedError(f"output.formats has {name}, which make_formats does not create")
    if output.pool:
        formats.append(PooledShards(folder, info, output.pool, output.compression))
    return formats
