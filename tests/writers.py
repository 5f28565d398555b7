"""Writers of runs in folders that no command has prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.core.files import make_folder
from runner.core.layout import RunLayout
from runner.output.rows import EmbeddingInfo, ShardFormat
from runner.output.state.journal import Journal
from runner.output.writer import ShardFiles, ShardWriter
from runner.vggish.spec import VGGISH


def vggish_info(metadata: Mapping[str, str] | None = None, hop_s: float = 0.96) -> EmbeddingInfo:
    """Return what writers of VGGish's embeddings are told."""
    return EmbeddingInfo(metadata or {}, hop_s, VGGISH.outputs)


def journaled_writer(folder: Path, formats: Sequence[ShardFormat]) -> ShardWriter:
    """Return a writer of shards with a journal of its own in the folder."""
    make_folder(RunLayout(folder).state)
    return ShardWriter(ShardFiles(folder, vggish_info(), formats), Journal(RunLayout(folder).journal))
