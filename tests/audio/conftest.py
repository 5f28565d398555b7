"""Encoded files that the tests of audio share."""

from __future__ import annotations

import pytest

from tests.audio.encoded import encoded


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of streams by extension."""
    folder = tmp_path_factory.mktemp("encoded")
    return {extension: encoded(folder, extension) for extension in ("mp3", "flac", "ogg")} | {
        "opus": encoded(folder, "opus", 6, 48_000)
    }
