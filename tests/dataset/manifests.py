"""Data sets for tests: files, and the manifests of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runner.config.schema import FolderDataset, ManifestDataset
from runner.dataset.manifest import build_manifest
from runner.dataset.table import Manifest


def put_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")


def list_folder(root: Path, **settings: Any) -> Manifest:
    dataset = FolderDataset(root=str(root), **({"extensions": ["wav", "flac"]} | settings))
    return build_manifest(dataset, root / "no-outputs")


def list_file(path: Path, content: str | bytes | pa.Table, root: Path | None = None) -> Manifest:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    dataset = ManifestDataset(path=str(path), root=str(root) if root else None)
    return build_manifest(dataset, path.parent / "no-outputs")


def clips_of(manifest: Manifest) -> list[str]:
    clips: list[str] = manifest.table["clip"].to_pylist()
    return clips
