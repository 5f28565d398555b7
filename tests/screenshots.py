"""Make the documentation's images: ``python -m tests.screenshots`` (needs Chromium: bash .ci/install-browser).

Run a sweep on the demo clips, and keep its output on the terminal and MLflow's compare page as small PNG files in
docs/images/.
"""

from __future__ import annotations

import html
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.tracking import MlflowClient
from PIL import Image

from runner.tracking.links import compare_page
from tests.chromium import open_browser
from tests.commands import PROJECT, environment, run_real
from tests.end_to_end.test_browser import free_port, page_text, wait_until_up

IMAGES = PROJECT / "docs" / "images"
SWEEP = ("-m", "memory=conservative,greedy", "precision=float32,auto", "profile.repeat_s=5", "weights=random")
_WRAP = 164
_SUMMARY_LINES = 22
_COLORS = 96
_SHOW_TABLES = """
    [...document.querySelectorAll("button")].find((each) => /close/i.test(each.ariaLabel ?? ""))?.click();
    const headings = [...document.querySelectorAll("*")].filter((each) => each.innerText?.trim() === "Parameters");
    headings.at(-1).scrollIntoView();
"""
"""Close MLflow's assistant, and scroll to the tables of parameters and metrics."""
_TERMINAL = (
    "<style>body{{margin:0;background:#16181d}}pre{{display:inline-block;color:#dfe3ea;font:13px/1.45 DejaVu Sans Mono;"
    "padding:18px 22px;margin:0;white-space:pre-wrap;width:{width}ch}}b{{color:#8fd18f}}</style><pre>{text}</pre>"
)


def main() -> None:
    """Make the images."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        done = run_real(*SWEEP, f"paths.outputs={outputs}", timeout=600)
        if done.status:
            raise SystemExit(done.err)
        browser = open_browser()
        try:
            _terminal(browser, done.out.replace(str(outputs), "outputs"), Path(folder))
            _compare(browser, outputs)
        finally:
            browser.quit()


def _terminal(browser, out: str, folder: Path) -> None:
    """Save the last job's summary and the sweep's, as a terminal shows them."""
    lines = [line[: 2 * _WRAP] for line in out.rstrip().splitlines()[-_SUMMARY_LINES:]]
    command = f"<b>$ python -m runner {html.escape(' '.join(SWEEP))}</b>\n…\n"
    page = folder / "terminal.html"
    page.write_text(
        _TERMINAL.format(
            width=_WRAP, text=command + html.escape("\n".join(lines)).replace(" paths.outputs=outputs", "")
        ),
        encoding="utf-8",
    )
    browser.get(page.as_uri())
    _keep(browser.find_element("tag name", "pre").screenshot_as_png, "sweep", folder)


def _compare(browser, outputs: Path) -> None:
    """Save the tables of MLflow's compare page for two runs that differ in precision."""
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'vggish-runner'")
    greedy = "metrics.realtime_factor > 0 and params.`memory.name` = 'greedy'"
    runs = client.search_runs([experiment.experiment_id], greedy)
    port = free_port()
    with (outputs / "ui.log").open("w") as log:
        command = ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{outputs}/mlflow.db", "--port", str(port)]
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_up(address, server, outputs / "ui.log")
        ids = [run.info.run_id for run in (runs[0], runs[-1])]
        browser.get(f"{address}/{compare_page(experiment.experiment_id, ids)}")
        page_text(browser, ["Parallel Coordinates Plot", "realtime_factor"])
        browser.execute_script(_SHOW_TABLES)
        time.sleep(2)  # the panel slides away
        _keep(browser.get_screenshot_as_png(), "compare", outputs)
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def _keep(png: bytes, name: str, folder: Path) -> None:
    raw = folder / f"{name}-raw.png"
    raw.write_bytes(png)
    image = Image.open(raw).convert("RGB").quantize(_COLORS)
    image.save(IMAGES / f"{name}.png", optimize=True)
    print(IMAGES / f"{name}.png", image.size, (IMAGES / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
