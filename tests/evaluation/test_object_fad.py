"""A run whose output is in an object store, by URL: its quality, its statistics and its embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runner.evaluation.fad import FadOptions, Reference, measure
from runner.evaluation.sources import find_sets, sum_of
from runner.storage.object_store import ObjectStore
from tests.commands import run
from tests.object_store import object_store
from tests.whole_run import make_data


@pytest.mark.slow
def test_a_url_is_what_the_folder_is(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    settings = (
        *("weights=random", "device=cpu", "tracking=none", "profile=off", "output.clips_per_shard=2"),
        *("evaluate=all", "evaluate.folds=2"),
    )
    with object_store() as store:
        store.bucket("fad", {})
        places = (str(tmp_path / "run"), "s3://fad/run")
        for place in places:
            done = run(f"dataset.root={data}", f"output.dir={place}", f"paths.outputs={tmp_path}/outputs", *settings)
            assert done.status == 0, done.err
            assert "quality  of 5 clips of 2 labels" in done.out
        local, remote = (
            {name: json.loads(read(name)) for name in ("evaluation.json", "result.json")}
            for read in (lambda name: (tmp_path / "run" / name).read_bytes(), ObjectStore(places[1], 20).read)
        )
        assert remote["evaluation.json"]["data_sha256"] == local["evaluation.json"]["data_sha256"]
        scores = [{**each["evaluation.json"]["metrics"]} for each in (local, remote)]
        for each in scores:
            assert each.pop("evaluate_s") > 0
        assert scores[0] == scores[1]
        assert scores[1].items() <= remote["result.json"]["metrics"].items()
        assert remote["result.json"]["evaluation"]["tasks"] == ["probe", "knn", "cluster", "retrieval"]
        (folder,), (url,) = map(find_sets, places)
        assert (url.is_remote, folder.is_remote) == (True, False)
        assert url.summary.about == folder.summary.about
        np.testing.assert_array_equal(url.summary.covariance, folder.summary.covariance)
        assert url.blocks is not None
        assert sum_of(url.blocks()).n == url.summary.n
        options = FadOptions(per_clip=True)
        assert measure(Reference(folder), url, options).clips == measure(Reference(folder), folder, options).clips
        assert find_sets("s3://fad/run/stats.npz")[0].summary.n == folder.summary.n
        assert [each.name for each in find_sets("s3://fad")] == ["s3://fad/run"]
