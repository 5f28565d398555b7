"""Pictures of made-up results: what is drawn, what is left out, and that trouble with one costs no run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.contract.result import RunResult
from runner.dataset.table import SCHEMA
from runner.output.parquet import embedding_schema
from runner.reporting import figures, sweep_figures
from runner.reporting.embedding_map import draw_map, pca, sample
from runner.reporting.run_figures import draw_run
from runner.reporting.sweep_figures import draw_sweep
from runner.vggish.spec import VGGISH
from tests.commands import PROJECT, environment
from tests.configs import make_config
from tests.reporting.test_advice import result, values
from tests.results import make_result, with_config, with_metrics

HOPS = {0.48: 90.0, 1.92: 170.0}


def run(**changes: Any) -> RunResult:
    found = values(**changes)
    found["metrics"] |= {"startup_s": 5.0, "startup_import_s": 3.0, "decode_busy_share": 0.2}
    found["metrics"] |= {"compute_busy_share": 0.9, "replica0_input_wait_share": 0.1}
    found["throughput_series"] = [{"t_s": 1.0, "realtime_factor": 90.0}, {"t_s": 2.0, "realtime_factor": 110.0}]
    found["memory_series"] = [{"t_s": -5.0, "rss_mib": 70.0}, {"t_s": 2.0, "rss_mib": 1100.0, "device_memory_mib": 9.0}]
    found["config"]["profile"] = {"projection": "none"}
    return make_result(found)


def names(paths: list[Path]) -> set[str]:
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths if path.suffix == ".png")
    return {path.name for path in paths}


@pytest.mark.slow
def test_a_run_is_drawn_as_far_as_its_figures_go(tmp_path: Path) -> None:
    assert names(draw_run(run(), tmp_path)) == {"throughput.png", "stages.png", "memory.png"}
    curve = {"steps": [{"batch_size": n, "examples_per_s": 9.0 * n, "memory_mib": n} for n in (1, 4)], "batch_size": 4}
    assert "batch_size.png" in names(draw_run(run(batch_size_curve=curve), tmp_path))
    actors = [
        {"host": "here", "node": n, "pid": n, "device_name": "cpu (a)", "realtime_factor": 9.0 + n} for n in (1, 2)
    ]
    assert "actors.png" in names(draw_run(run(actors=actors, actors_summary="2 on cpu (a)"), tmp_path))
    assert draw_run(with_config(result(), profile={"projection": "none"}), tmp_path / "none") == []


def test_trouble_with_a_picture_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(figures, "save", lambda figure, path: 1 / 0)
    assert draw_run(run(), tmp_path) == []
    assert "could not draw" in caplog.text


@pytest.mark.slow
def test_a_sweep_is_drawn_with_energy_where_all_have_it(tmp_path: Path) -> None:
    jobs = [result(), result("gpu", "greedy", "float16", 9e4, std=100.0), result(status="failed")]
    jobs = [with_metrics(job, parity_min_cosine=1.0) for job in jobs]
    assert names(draw_sweep(jobs, tmp_path)) == {"throughput.png", "speedup.png", "pareto.png", "parity.png"}
    assert sweep_figures._pareto(jobs).axes[0].get_xlabel() == "peak memory of the worker, MiB"
    jobs = [with_metrics(job, joules_per_audio_hour=10.0) for job in jobs]
    assert sweep_figures._pareto(jobs).axes[0].get_xlabel() == "joules per hour of audio"


def test_every_setting_of_a_sweep_is_drawn_and_named(tmp_path: Path) -> None:
    jobs = [result(speed=speed, run_name=f"cpu-balanced-float32 hop_s={hop}", std=2.0) for hop, speed in HOPS.items()]
    jobs = [with_config(job, frontend={"hop_s": hop}) for job, hop in zip(jobs, HOPS, strict=True)]
    axes = sweep_figures._sweep_throughput(jobs).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [job.info.run_name for job in jobs]
    assert "frontend.hop_s 1.92" in [text.get_text() for text in axes.texts]
    assert names(draw_sweep(jobs, tmp_path)) == {"throughput.png"}  # nothing that would compare them


def write_embeddings(run_dir: Path, rows: int, shards: int = 1) -> None:
    rng = np.random.default_rng(0)
    (run_dir / "embeddings").mkdir(parents=True)
    for shard in range(shards):
        clips = [f"</script><b>{shard}-{row}.wav" for row in range(rows)]
        labels = [None if row % 7 == 0 else f"label {row % 30}" for row in range(rows)]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 128).astype(np.float32)), 128)
        columns = [clips, [0] * rows, [0.0] * rows, [False] * rows, labels, vectors]
        table = pa.Table.from_arrays(
            [pa.array(c) if isinstance(c, list) else c for c in columns], embedding_schema(VGGISH.outputs).names
        )
        path = run_dir / "embeddings" / f"part-{shard:05d}.parquet"
        pq.write_table(table.cast(embedding_schema(VGGISH.outputs)), path)
    (run_dir / ".runner").mkdir()
    pq.write_table(SCHEMA.empty_table(), run_dir / ".runner" / "manifest.parquet")


def test_the_map_has_every_point_and_its_page_is_safe(tmp_path: Path) -> None:
    write_embeddings(tmp_path, 90)
    assert names(draw_map(tmp_path, tmp_path / "plots", make_config())) == {"projection.png", "embeddings.html"}
    page = (tmp_path / "plots" / "embeddings.html").read_text()
    assert "</script><b>" not in page
    data = json.loads(re.search(r"const data = (.*);", page).group(1).replace("<\\/", "</"))
    assert len(data["points"]) == len(data["clips"]) == len(data["labels"]) == 90
    assert "(no label)" in data["labels"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing is loaded from elsewhere


def test_the_map_of_much_is_an_even_sample(tmp_path: Path) -> None:
    write_embeddings(tmp_path, 500, shards=60)
    table = sample(tmp_path / "embeddings", max_points=1000)
    assert 500 < table.num_rows <= 1000
    assert len({name.split(">")[2].split("-")[0] for name in table["clip"].to_pylist()}) == 30


def test_without_embeddings_there_is_no_map(tmp_path: Path) -> None:
    assert draw_map(tmp_path, tmp_path, make_config()) == []


def test_pca_finds_the_axes_that_hold_the_variance() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(400, 128)) * 0.01
    points[:, 5] += rng.normal(size=400) * 10
    points[:, 9] += rng.normal(size=400) * 5
    found, shares = pca(points)
    assert abs(np.corrcoef(found[:, 0], points[:, 5])[0, 1]) > 0.99
    assert abs(np.corrcoef(found[:, 1], points[:, 9])[0, 1]) > 0.99
    assert shares.sum() > 0.99


def test_umap_says_how_it_is_installed(tmp_path: Path) -> None:
    try:
        import umap  # noqa: F401
    except ImportError:
        write_embeddings(tmp_path, 9)
        with pytest.raises(ImportError, match=r"vggish-runner\[umap\]"):
            draw_map(tmp_path, tmp_path, make_config(["profile.projection=umap"]))


def test_the_first_figure_finds_matplotlib_imported_ahead() -> None:
    code = """if True:
        import io, sys
        from runner.reporting.figures import import_matplotlib, new_figure
        import_matplotlib()
        before = set(sys.modules)
        new_figure()[0].savefig(io.BytesIO())
        print([name for name in set(sys.modules) - before if name.startswith("matplotlib")])
    """
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, env=environment(), text=True) == "[]\n"
