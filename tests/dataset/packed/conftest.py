"""Data sets of the same clips: a folder, tars and Parquet files."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.dataset.packed.packs import CLIPS, embed, pack, some, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unpacked")
    for name, data in CLIPS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars")
    pack(root / "part-000.tar", some(0, 4) | {"cat/000.json": b'{"label": 3}', "./README": b"x"})
    pack(root / "part-001.tar", {f"./{name}": data for name, data in some(4, 9).items()}, tarfile.GNU_FORMAT)
    pack(root / "sub" / "part-002.tar", some(9, 99))
    return root


@pytest.fixture(scope="module")
def parquets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parquets")
    write_parquet(root / "train-0.parquet", some(0, 7))
    write_parquet(root / "train-1.parquet", some(7, 99))
    return root


@pytest.fixture(scope="module")
def unpacked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return embed(tmp_path_factory.mktemp("undisturbed"), "folder", f"dataset.root={folder}")
