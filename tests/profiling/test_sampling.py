"""Memory, power and energy: on this machine, and on counters that are files of our own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.devices.load import BackgroundLoad
from runner.profiling.sampler import EnergyMeter, Sampler


def test_samples_are_taken_until_stopped() -> None:
    sampler = Sampler(0.02)
    since = time.perf_counter()
    sampler.start()
    time.sleep(0.2)
    sampler.stop()
    series = sampler.series(since)
    assert 4 <= len(series) <= 14
    assert all(sample["rss_mib"] > 10 for sample in series)
    times = [sample["t_s"] for sample in series]
    assert times == sorted(times)
    assert len(sampler.series(since, most=3)) <= 3


def package(root: Path, number: int, microjoules: int) -> None:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_energy_adds_the_packages_and_survives_a_counter_that_begins_again(tmp_path: Path) -> None:
    package(tmp_path, 0, 1_000_000)
    package(tmp_path, 1, 9_500_000)
    core = tmp_path / "intel-rapl:0:0"  # a part of package 0: not counted twice
    core.mkdir()
    (core / "energy_uj").write_text("5")
    meter = EnergyMeter(powercap=tmp_path)
    package(tmp_path, 0, 3_000_000)
    package(tmp_path, 1, 500_000)
    assert meter.joules() == {"rapl": pytest.approx(2.0 + 1.0)}


def test_energy_that_cannot_be_read_is_none_at_all(tmp_path: Path) -> None:
    assert EnergyMeter(powercap=tmp_path / "none").joules() == {}


def test_a_runs_own_work_is_no_background_load() -> None:
    load = BackgroundLoad()
    began, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < 0.3:
        pass
    own = time.process_time() - busy
    assert load.share(own) <= load.share(0.0)
    assert load.share(1e9) == 0.0
