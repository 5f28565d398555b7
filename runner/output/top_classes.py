"""A clip's top classes: of an output with classes, those of the highest mean scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from runner.output.rows import CLIP_SCHEMA
from runner.output.spill import blocks

if TYPE_CHECKING:
    from runner.core.model_spec import Output
    from runner.output.rows import ClipRow, EmbeddingInfo

TOP = 5
"""Classes of a clip that clips.parquet has."""

_FIELDS = (("top_classes", pa.list_(pa.string())), ("top_scores", pa.list_(pa.float32())))


def scored(outputs: Sequence[Output]) -> Output | None:
    """Return the first output with classes; None where there is none."""
    return next((output for output in outputs if output.classes), None)


def clip_schema(outputs: Sequence[Output]) -> pa.Schema:
    """Return the columns of clips.parquet: ``CLIP_SCHEMA``, and of models with classes a clip's top classes."""
    return pa.schema([*CLIP_SCHEMA, *_FIELDS]) if scored(outputs) else CLIP_SCHEMA


def with_top_classes(clips: pa.Table, rows: Sequence[ClipRow], info: EmbeddingInfo) -> pa.Table:
    """Append the columns of top classes to the table of clips, for a model that has any.

    ``top_scores`` are means over the clip's examples, the highest first; skipped clips have nulls.
    """
    if (output := scored(info.outputs)) is None:
        return clips
    columns = info.slices[info.outputs.index(output)]
    names: list[list[str] | None] = []
    scores: list[list[float] | None] = []
    for row in rows:
        if not row.examples:
            names.append(None)
            scores.append(None)
            continue
        sums = [block[:, columns].sum(axis=0, dtype=np.float64) for block in blocks(row.embeddings, info.block_rows)]
        means = np.sum(sums, axis=0) / row.examples
        top = np.argsort(-means, kind="stable")[:TOP]
        names.append([output.classes[number] for number in top])
        scores.append(means[top].tolist())
    for (name, of), values in zip(_FIELDS, (names, scores), strict=True):
        clips = clips.append_column(name, pa.array(values, of))
    return clips
