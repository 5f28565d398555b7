"""The page of a map: whose log-mels it shows, and in a browser what a click plays and shows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from runner.audio.framing import WindowCutter, cut, scaled
from runner.audio.reader import leveled, read_clip
from runner.config.groups.dataset import FolderDataset, ManifestDataset
from runner.config.groups.frontend import FrontendConfig
from runner.dataset.clips import find_clips
from runner.dataset.folder import list_folder
from runner.dataset.manifest_file import read_manifest_file
from runner.dataset.table import SCHEMA
from runner.output.parquet import embedding_schema
from runner.reporting import log_mels
from runner.reporting.embedding_map import draw_map
from runner.reporting.log_mels import LOWEST, Example, compute_log_mels, frequency_ticks, write_sheets
from runner.vggish.mel import mel_matrix
from runner.vggish.reference import reference_log_mel
from runner.vggish.spec import VGGISH
from tests.chromium import browser
from tests.configs import make_config
from tests.end_to_end.test_browser import keep_screenshot
from tests.vggish_clips import FRAMING, PREPARATION

__all__ = ["browser"]

HOSTILE = "a b#t=1,2 100%?'\"&</script><b>ü.wav"
MANY_RATES = ((16_000, 1), (44_100, 2), (48_000, 1), (22_050, 1))


def write_run(run_dir: Path, clips: pa.Table, examples: int, hop_s: float = 0.96) -> None:
    """Write a run's manifest, and made-up embeddings of so many examples a clip."""
    for folder in (".runner", "embeddings"):
        (run_dir / folder).mkdir(parents=True)
    pq.write_table(clips, run_dir / ".runner" / "manifest.parquet")
    rows = clips.num_rows * examples
    vectors = np.random.default_rng(0).normal(size=rows * 128).astype(np.float32)
    starts = np.array([start or 0.0 for start in clips["start"].to_pylist()])
    number = np.tile(np.arange(examples), clips.num_rows)
    columns = {
        "clip": np.repeat(clips["clip"].to_numpy(), examples),
        "example": number,
        "start_s": np.repeat(starts, examples) + hop_s * number,
        "padded": np.zeros(rows, bool),
        "label": np.repeat(clips["label"].to_numpy(), examples),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 128),
    }
    table = pa.table(columns).cast(embedding_schema(VGGISH.outputs))
    pq.write_table(table, run_dir / "embeddings" / "part-00000.parquet")


def draw(run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Draw the map; return the data in its page."""
    assert draw_map(run_dir, run_dir / "plots", make_config(overrides))
    page = (run_dir / "plots" / "embeddings.html").read_text()
    return json.loads(re.search(r"const data = (.*);\n", page).group(1))


def noise(path: Path, seconds: float = 3.0, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(os.fsencode(path), samples * np.linspace(0.01, 1, len(samples))[:, None], rate)
    return path


def levels_of(sheet: Path, index: int) -> np.ndarray:
    """The image of a log-mel in a sheet, as [time, band]."""
    row, column = divmod(index, 10)
    return np.array(Image.open(sheet))[64 * row : 64 * row + 64, 96 * column : 96 * column + 96][::-1].T.astype(int)


@pytest.mark.parametrize(
    "frontend",
    [
        ("frontend.tail=pad",),
        ("frontend.resampler=soxr",),
        ("frontend.speed=0.5",),
        ("frontend=google",),
        ("frontend=audioldm",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_points_log_mel_is_the_references_of_the_window_that_was_embedded(
    tmp_path: Path, frontend: Sequence[str]
) -> None:
    config = make_config(frontend).frontend
    examples, windows = [], []
    for rate, channels in MANY_RATES:
        path = noise(tmp_path / f"{rate}.wav", 2.5, rate, channels)
        with read_clip(str(path), preparation=config.preparation(VGGISH)) as clip:
            preparation = leveled(clip)
        with read_clip(str(path), preparation=preparation) as clip:
            own = scaled(np.concatenate(list(cut(iter(clip), WindowCutter(config.framing(VGGISH))))))
        windows.append(own)
        examples += [Example(os.fsencode(path), config.file_hop_s * number, 0.0, None) for number in range(len(own))]
    computed, failures = compute_log_mels(examples, config)
    assert not failures
    (sheet,) = write_sheets(computed, tmp_path)
    reference = reference_log_mel(np.concatenate(windows))
    expected = np.rint((reference - LOWEST) * (255 / (reference.max() - LOWEST)))
    assert len(expected) in (8, 12, 16, 20)
    assert Image.open(sheet).size == (960, 64 * -(-len(expected) // 10))
    assert expected.std() > 30
    for index, levels in enumerate(expected):
        assert abs(levels_of(sheet, index) - levels).max() <= 1


def test_the_log_mels_are_spread_evenly_and_clips_of_manifests_play_their_stretch(tmp_path: Path) -> None:
    noise(tmp_path / "data" / HOSTILE, 10.0)
    quoted = HOSTILE.replace('"', '""')
    rows = "".join(f'"{quoted}",{start},{start + 2.0},x\n' for start in (1.5, 4.25, 7.0))
    (tmp_path / "data" / "list.csv").write_text(f"path,start,end,label\n{rows}")
    manifest = read_manifest_file(ManifestDataset(path=str(tmp_path / "data" / "list.csv")))
    write_run(tmp_path, manifest.table, examples=2)
    data = draw(tmp_path, "profile.log_mels=3")
    assert [point[4] for point in data["points"]] == [0, -1, 1, -1, 2, -1]
    assert data["notes"] == []
    names, urls, starts, ends = zip(*data["clips"], strict=True)
    assert names[0] == f"{HOSTILE}#t=1.5,3.5"
    assert set(urls) == {(tmp_path / "data" / HOSTILE).as_uri()}
    assert (starts, ends) == ((1.5, 4.25, 7.0), (3.5, 6.25, 9.0))
    with read_clip(str(tmp_path / "data" / HOSTILE), 4.25, 6.25, preparation=PREPARATION) as clip:
        window = next(cut(iter(clip), WindowCutter(FRAMING)))[:1]
    computed, _ = compute_log_mels(
        [Example(os.fsencode(tmp_path / "data" / HOSTILE), 4.25, 4.25, 6.25)], FrontendConfig()
    )
    np.testing.assert_allclose(computed[0], reference_log_mel(scaled(window))[0], atol=1e-5)


def test_files_that_vanished_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in "abc":
        noise(tmp_path / "data" / f"{name}.wav")
    write_run(tmp_path, list_folder(tmp_path / "data", FolderDataset(), is_demo=False).table, examples=2)
    (tmp_path / "data" / "b.wav").unlink()
    (tmp_path / "data" / "c.wav").write_bytes(b"RIFF")
    data = draw(tmp_path)
    assert [point[4] for point in data["points"]] == [0, 1, -1, -1, -1, -1]
    assert data["notes"] == ["4 of 6 log-mels are left out (2 missing, 2 unsupported_format)."]


@pytest.mark.parametrize(
    ("path", "place"), [(b"s3://bucket/a.wav", "in an object store"), (b"/data/a.tar\0tar", "in packed files")]
)
def test_clips_that_are_no_local_files_have_a_reason_instead(tmp_path: Path, path: bytes, place: str) -> None:
    columns = [["a.wav"], [path], [None], [None], ["x"], [9], [0]]
    write_run(tmp_path, pa.Table.from_arrays(list(map(pa.array, columns)), SCHEMA.names).cast(SCHEMA), examples=3)
    data = draw(tmp_path)
    assert data["clips"] == [["a.wav", None, None, None]]
    assert data["notes"] == [f"Clips {place} are not played, and have no log-mels here."]
    assert not (tmp_path / "plots" / "log_mel").exists()


def test_a_fresh_map_removes_the_sheets_of_an_earlier_one(tmp_path: Path) -> None:
    silence = np.full((96, 64), LOWEST, np.float32)
    assert len(write_sheets([silence] * 201, tmp_path)) == 3
    assert write_sheets([silence] * 100, tmp_path) == list(tmp_path.iterdir())


def test_examples_that_would_take_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [noise(tmp_path / f"a.{suffix}") for suffix in ("wav", "flac", "mp3")]
    monkeypatch.setattr(log_mels, "_MAX_EXTRA_S", 1.0)
    examples = [Example(os.fsencode(path), 1.92, 0.0, None) for path in paths]
    computed, failures = compute_log_mels(examples, FrontendConfig())
    assert [log_mel is None for log_mel in computed] == [False, False, True]
    assert failures == {"timeout": 1}
    assert compute_log_mels(examples, FrontendConfig(), timeout_s=-1.0) == ([None] * 3, {"timeout": 3})


def test_a_level_that_would_take_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = Example(os.fsencode(noise(tmp_path / "a.wav")), 0.0, 0.0, None)
    google = make_config(["frontend=google"]).frontend
    assert not compute_log_mels([example], google)[1]
    monkeypatch.setattr(log_mels, "_MAX_EXTRA_S", 1.0)
    assert compute_log_mels([example], google) == ([None], {"timeout": 1})


def test_ticks_are_at_the_band_that_answers_most(tmp_path: Path) -> None:
    for hertz, share in frequency_ticks():
        bands = mel_matrix()[round(hertz / 31.25)]
        assert abs((bands * (np.arange(64) + 0.5)).sum() / bands.sum() / 64 - share) < 0.005


def test_clips_are_found_in_all_row_groups_of_a_manifest(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in range(10)]
    columns = [names, [f"/{name}".encode() for name in names], [None] * 10, [None] * 10, ["x"] * 10, [9] * 10, [0] * 10]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), SCHEMA.names).cast(SCHEMA)
    pq.write_table(table, tmp_path / "manifest.parquet", row_group_size=3)
    clips = find_clips(tmp_path / "manifest.parquet", {"2.wav", "8.wav", "absent.wav"})
    assert {name: (clip.number, clip.path) for name, clip in clips.items()} == {
        "2.wav": (2, b"/2.wav"),
        "8.wav": (8, b"/8.wav"),
    }


STATE = """
    const audio = document.getElementById("audio"), image = document.getElementById("image");
    return {src: audio.src, ready: audio.readyState, error: audio.error && audio.error.message, at: audio.currentTime,
            paused: audio.paused, shown: !document.getElementById("patch").hidden,
            background: image.style.backgroundImage, text: document.body.innerText};
"""
NATURAL_SIZE = """
    const done = arguments[0], image = new Image();
    image.onload = () => done([image.naturalWidth, image.naturalHeight]); image.onerror = () => done(null);
    image.src = document.getElementById("image").style.backgroundImage.slice(5, -2);
"""


def wait_for_sound(browser: Any, seconds: float = 30.0) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (state := browser.execute_script(STATE))["ready"] == 0 or not state["at"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def click_point(browser: Any, number: int) -> None:
    from selenium.webdriver.common.by import By

    browser.find_elements(By.CSS_SELECTOR, "ellipse")[number].click()


def open_map(browser: Any, run_dir: Path, table: pa.Table, examples: int, *overrides: str) -> dict[str, Any]:
    write_run(run_dir, table, examples)
    data = draw(run_dir, *overrides)
    browser.get((run_dir / "plots" / "embeddings.html").as_uri())
    return data


@pytest.mark.browser
@pytest.mark.slow
def test_a_click_plays_the_example_and_shows_its_log_mel(browser, audio: Path, tmp_path: Path) -> None:
    table = list_folder(audio / "labelled_esc10_fold1", FolderDataset(), is_demo=False).table.slice(0, 40)
    data = open_map(browser, tmp_path, table, 5)
    assert data["notes"] == []
    number = 117
    start, (name, url, *_) = data["points"][number][3], data["clips"][data["points"][number][2]]
    click_point(browser, number)
    state = wait_for_sound(browser)
    assert state["src"] == f"{url}#t={start},{start + 0.975}"
    assert state["error"] is None
    assert state["at"] >= start
    assert f"{name}, from {start} s" in state["text"]
    assert state["shown"]
    assert browser.execute_async_script(NATURAL_SIZE) == [960, 640]
    keep_screenshot(browser, "map-log-mel")
    browser.execute_script("document.getElementById('whole').click()")
    assert wait_for_sound(browser)["src"] == url


@pytest.mark.browser
@pytest.mark.slow
def test_hostile_names_play_and_arrow_keys_go_from_point_to_point(browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    noise(tmp_path / "data" / "__proto__" / HOSTILE, 6.0)
    noise(tmp_path / "data" / "<img src=x onerror=document.title=1>" / "\udcff.wav", 6.0)
    table = list_folder(tmp_path / "data", FolderDataset(), is_demo=False).table
    data = open_map(browser, tmp_path, table, 4, "profile.log_mels=4")
    urls = {}
    for number in (0, 5):
        click_point(browser, number)
        state = wait_for_sound(browser)
        assert state["error"] is None
        urls[number] = state["src"].partition("#")[0]
        assert state["shown"] == (data["points"][number][4] >= 0)
        assert ("No log-mel of this point" in state["text"]) != state["shown"]
    assert urls == {number: data["clips"][data["points"][number][2]][1] for number in (0, 5)}
    assert urls[0] != urls[5]
    assert browser.title == "Embeddings"
    assert len(browser.find_elements(By.CSS_SELECTOR, "ellipse")) == 8
    plot = browser.find_element(By.ID, "plot")
    chosen = [browser.find_element(By.ID, "chosen").text]
    plot.send_keys(Keys.ARROW_LEFT)
    plot.send_keys(Keys.ARROW_LEFT)
    chosen.append(browser.find_element(By.ID, "chosen").text)
    x = [ellipse.get_attribute("cx") for ellipse in browser.find_elements(By.CSS_SELECTOR, "ellipse[stroke]")]
    assert len(x) == 1
    assert float(x[0]) <= 1.25 * data["points"][5][0]
    assert data["points"][5][0] == min(point[0] for point in data["points"]) or chosen[0] != chosen[1]
