"""What a person sees in `mlflow ui` after a sweep, in a real browser; the screenshots stay under outputs/."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import AUDIO, PROJECT, environment, run_command

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SCREENSHOTS = PROJECT / "outputs" / "screenshots"


UNFOLD = """
    const link = [...document.querySelectorAll("a")].find(each => each.innerText.startsWith("sweep "));
    link.closest("[role=gridcell]").querySelector("button").click();
"""
SHOW_LAST_TABLE = "[...document.querySelectorAll('table')].at(-1).scrollIntoView()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are missing in CI: .ci/install-browser installs them")
        pytest.skip("chromium or chromedriver is not installed: bash .ci/install-browser")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1600,1200"):  # fmt: skip
        options.add_argument(f"--{flag}")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list]:
    """The issue's sweep, and `mlflow ui` exactly as its summary says: (address, runs with the parent first)."""
    outputs = tmp_path_factory.mktemp("browser") / "outputs"
    root = AUDIO / "tiny_fsdd300"
    data = [f"dataset.root={root}"] if root.is_dir() else []
    done = run_command(
        "-m", "device=cpu,gpu", "memory=conservative,greedy", *data, "weights=random", f"paths.outputs={outputs}"
    )
    assert done.status == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("mlflow  "))
    command = line.removeprefix("mlflow  ").split()
    assert command[:2] == ["mlflow", "ui"]
    port = free_port()
    with (outputs / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment(MLFLOW_DISABLE_TELEMETRY="true"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(address, server, outputs / "ui.log")
        client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
        experiment = client.get_experiment_by_name("vggish-runner").experiment_id
        yield address, client.search_runs([experiment], order_by=["attributes.start_time ASC"])
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
            time.sleep(0.5)


def page_text(browser, wanted: list[str], seconds: float = 60) -> str:
    """The page's text once all the wanted words are on it."""
    deadline = time.monotonic() + seconds
    while True:
        text = browser.execute_script("return document.body.innerText")
        missing = [word for word in wanted if word not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"{missing} not on {browser.current_url}:\n{text[:3000]}"
        time.sleep(0.5)


def keep_screenshot(browser, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def test_the_run_list_shows_the_parent_with_its_children(browser, sweep) -> None:
    address, (parent, *children) = sweep
    assert len(children) == 4
    browser.get(f"{address}/#/experiments/{parent.info.experiment_id}/runs")
    page_text(browser, ["sweep device=cpu,gpu"])
    names = [child.info.run_name for child in children]
    assert names[0] not in page_text(browser, [])  # the children stand folded below their parent
    browser.execute_script(UNFOLD)
    page_text(browser, names)
    keep_screenshot(browser, "run-list")


def test_the_parent_page_says_how_its_jobs_went(browser, sweep) -> None:
    address, (parent, *children) = sweep
    browser.get(f"{address}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}")
    text = page_text(browser, ["best_audio_x_realtime", "sweep.finished", children[0].info.run_name])
    assert all(child.info.run_name in text for child in children)
    keep_screenshot(browser, "parent")


def test_the_compare_page_shows_throughput_and_devices_of_two_runs(browser, sweep) -> None:
    address, (parent, cpu, *_, gpu) = sweep
    ids = f'["{cpu.info.run_id}","{gpu.info.run_id}"]'
    browser.get(f'{address}/#/compare-runs?runs={ids}&experiments=["{parent.info.experiment_id}"]')
    page_text(browser, ["audio_x_realtime", "clips_per_s", cpu.info.run_name, gpu.info.run_name])
    text = page_text(browser, ["device.requested", "device.effective", "device.fallback_reason"])
    for run in (cpu, gpu):
        assert f"{run.data.metrics['audio_x_realtime']:.4g}" in text  # the page's own rounding
    keep_screenshot(browser, "compare")
    browser.execute_script(SHOW_LAST_TABLE)
    keep_screenshot(browser, "compare-tags")
