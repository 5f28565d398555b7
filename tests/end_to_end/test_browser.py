"""What a person sees in `mlflow ui` after a sweep, in a real browser; the screenshots stay under outputs/."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from runner.tracking.links import run_page
from tests import commands
from tests.chromium import browser
from tests.commands import PROJECT, environment

__all__ = ["browser"]

pytestmark = pytest.mark.browser

SCREENSHOTS = PROJECT / "outputs" / "screenshots"


UNFOLD = """
    const link = [...document.querySelectorAll("a")].find(each => each.innerText.startsWith("sweep "));
    link.closest("[role=gridcell]").querySelector("button").click();
"""
SCROLL = "document.querySelector('.ag-center-cols-viewport').scrollLeft = arguments[0]"
HEADERS = "return [...document.querySelectorAll('[role=columnheader]')].map((each) => each.innerText.trim())"
AXES_OF_THE_PLOT = "return [...document.querySelectorAll('.axis-title')].map((each) => each.textContent)"
DESCRIPTION = "return document.querySelector('.note-editor-preview-content').innerText"
SIZES = "return [...document.images].map((each) => [each.naturalWidth, each.naturalHeight])"
PICTURE = "return [...document.images].some((each) => each.complete && each.naturalWidth > 300)"
SHOW_LAST_TABLE = "[...document.querySelectorAll('table')].at(-1).scrollIntoView()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def sweep(
    few_clips: Path, tmp_path_factory: pytest.TempPathFactory, new_outputs: Callable[[Path], Path]
) -> Iterator[tuple[str, list, str]]:
    """The issue's sweep, and `mlflow ui` exactly as its summary says: (address, runs, the parent first, its page)."""
    outputs = new_outputs(tmp_path_factory.mktemp("browser") / "outputs")
    done = commands.run(
        *("-m", "device=cpu,gpu", "memory=conservative,greedy", f"dataset.root={few_clips}", "weights=random"),
        f"paths.outputs={outputs}",
    )
    assert done.status == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("mlflow  "))
    command = line.removeprefix("mlflow  ").split()
    assert command[:2] == ["mlflow", "ui"]
    port = free_port()
    with (outputs / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env=environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(address, server, outputs / "ui.log")
        client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
        experiment = client.get_experiment_by_name("vggish-runner").experiment_id
        page = next(line for line in reversed(done.out.splitlines()) if "then http" in line).split()[-1]
        runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
        yield address, runs, page.replace("http://127.0.0.1:5000", address)
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def wait_until_up(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def page_text(browser, wanted: list[str], seconds: float = 60) -> str:
    """The page's text once all the wanted words are on it."""
    deadline = time.monotonic() + seconds
    while True:
        text = browser.execute_script("return document.body.innerText")
        missing = [word for word in wanted if word not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"{missing} not on {browser.current_url}:\n{text[:3000]}"
        time.sleep(0.1)


def wait_for_a_picture(browser, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not browser.execute_script(PICTURE):
        assert time.monotonic() < deadline, "no picture was loaded"
        time.sleep(0.1)


def keep_screenshot(browser, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def test_the_run_list_shows_the_parent_with_its_children_and_our_columns(browser, sweep) -> None:
    _, (_, *children), page = sweep
    assert len(children) == 4
    browser.get(page)
    text = page_text(browser, ["sweep device=cpu,gpu", "realtime_factor", "Dataset"])
    assert "Model registry" in text
    assert "Judges" not in text  # the menu is not that of language models
    names = [child.info.run_name for child in children]
    assert names[0] not in page_text(browser, [])  # the children stand folded below their parent
    browser.execute_script(UNFOLD)
    page_text(browser, names)
    keep_screenshot(browser, "run-list")
    missing = {"realtime_factor", "rss_peak_mib", "parity_rel_err", "bottleneck"}
    for left in range(0, 3000, 300):  # the grid makes the columns that are in sight
        if missing:
            browser.execute_script(SCROLL, left)
            time.sleep(0.3)
            missing -= set(browser.execute_script(HEADERS))
    assert not missing


def test_the_parent_page_says_how_its_jobs_went(browser, sweep) -> None:
    address, (parent, *children), _ = sweep
    browser.get(f"{address}/{run_page(parent.info.experiment_id, parent.info.run_id)}")
    text = page_text(browser, ["best_realtime_factor", "sweep.finished", "swept.device", "best.run_id", "Use it:"])
    assert all(child.info.run_name in text for child in children)
    note = browser.execute_script(DESCRIPTION)
    assert all(line in note for line in parent.data.tags["verdict"].splitlines()[:-1])
    assert note.index("parity error") < note.index("Compared by") < note.index("Use it:")  # the table comes first
    keep_screenshot(browser, "parent")


def test_the_parents_pictures_are_shown(browser, sweep) -> None:
    address, (parent, *_), _ = sweep
    page = f"{address}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}/artifacts/plots"
    pictures = Path(parent.data.tags["run_dir"]) / "plots"
    for name in ("throughput", "parity"):
        browser.get("about:blank")  # or only the address behind its # would change
        browser.get(f"{page}/{name}.png")
        page_text(browser, [f"plots/{name}.png", "speedup.png"])
        wait_for_a_picture(browser)
        assert list(Image.open(pictures / f"{name}.png").size) in browser.execute_script(SIZES)
        keep_screenshot(browser, f"picture-{name}")


def test_the_map_of_a_run_can_be_clicked_in(browser, sweep, tmp_path) -> None:
    _, (_, run, *_), _ = sweep
    page = next(Path(run.data.tags["run_dir"]).glob("plots/embeddings.html"))
    browser.get(page.as_uri())
    browser.execute_script("document.querySelector('ellipse').dispatchEvent(new MouseEvent('click'))")
    text = page_text(browser, [", from 0 s, label "])
    assert "Play example Play whole clip open" in text
    assert browser.execute_script("return !document.getElementById('patch').hidden")
    keep_screenshot(browser, "map")


def test_the_compare_page_shows_throughput_and_devices_of_two_runs(browser, sweep) -> None:
    address, (parent, cpu, *_, gpu), _ = sweep
    ids = f'["{cpu.info.run_id}","{gpu.info.run_id}"]'
    browser.get(f'{address}/#/compare-runs?runs={ids}&experiments=["{parent.info.experiment_id}"]')
    page_text(browser, ["clips_per_s", cpu.info.run_name, gpu.info.run_name])
    page_text(browser, ["Parallel Coordinates Plot"])
    axes: list[str] = []
    deadline = time.monotonic() + 60
    while not any("." in axis for axis in axes) and time.monotonic() < deadline:  # the plot is drawn after its title
        axes = browser.execute_script(AXES_OF_THE_PLOT)
        time.sleep(0.1)
    assert next((axis for axis in axes if "." in axis), None) == "actual.memory", axes  # the device was the CPU in both
    keep_screenshot(browser, "compare-plot")
    text = page_text(browser, ["actual.device", "device.requested", "device.effective", "device.fallback_reason"])
    _, _, parameters = text.partition("\nParameters\n")
    assert parameters.partition("\nMetrics\n")[0].split("\n")[1].startswith("actual.device"), parameters[:300]
    for run in (cpu, gpu):
        assert f"{run.data.metrics['clips_per_s']:.4g}" in text  # the page's own rounding
    keep_screenshot(browser, "compare")
    browser.execute_script(SHOW_LAST_TABLE)
    keep_screenshot(browser, "compare-tags")
