"""Writers of runs in folders that no command has prepared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.core.files import make_folder
from runner.core.layout import RunLayout
from runner.output.rows import ShardFormat
from runner.output.state.journal import Journal
from runner.output.writer import ShardFiles, ShardWriter


def journaled_writer(folder: Path, formats: Sequence[ShardFormat]) -> ShardWriter:
    """Return a writer of shards with a journal of its own in the folder."""
    make_folder(RunLayout(folder).state)
    return ShardWriter(ShardFiles(folder, formats), Journal(RunLayout(folder).journal))
