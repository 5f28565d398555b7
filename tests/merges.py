"""The workbench of tests/stress/faults.py for merges: two partitions, finished, are put together."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.stress.faults import Scenario, Workbench


class MergeBench(Workbench):
    """Where merges are disturbed."""

    def __init__(self, folder: Path) -> None:
        from runner.cli import merge as command
        from runner.output.merge import merge

        self._merge, self._command = merge, command
        self._parts = [folder / f"part-{which}" for which in (1, 2)]
        super().__init__(folder)

    def scenarios(self) -> Iterator[Scenario]:
        """A new merge, and one that was stopped before the last shard."""
        yield self._scenario("new merge")
        self._clear()
        with mock.patch.object(self._merge, "totals", side_effect=OSError("stopped")):
            self._session()
        yield self._scenario("merge taken up")

    def _first_session(self) -> None:
        for which, run in enumerate(self._parts, 1):
            config = self._runs.make_config(self._data, run, f"dataset.partition={which}/2", folder=self._folder)
            result = self._runs.session(config, run)
            assert not isinstance(result, str), result
            assert result["status"] == "finished", result
        self._session()

    def _carry_out(self) -> dict[str, Any] | str:
        told = io.StringIO()
        one_by_one = mock.patch.object(self._merge, "map_ahead", lambda copy, shards, *_: map(copy, shards))
        with one_by_one, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            status = self._command.main([*map(str, self._parts), "--output", str(self.run)])
        return told.getvalue().strip() if status else {"status": "finished"}

    def _wrong(self, undisturbed: dict[str, bytes], result: dict[str, Any] | str) -> list[str]:
        if isinstance(result, str):
            return [f"not finished: {result}"]
        found = self._runs.tree(self.run)
        found.pop(".merging.lock", None)  # does no harm where it stays
        return [name for name in undisturbed.keys() | found if undisturbed.get(name) != found.get(name)]

    def _again(self, scenario: Scenario) -> list[str]:
        if (self.run / "merged.json").exists() and not (self.run / "merge_in_progress.json").exists():
            return self._wrong(scenario.undisturbed, {})  # it is finished, and would be refused
        return super()._again(scenario)

    def _lies(self, scenario: Scenario) -> list[str]:
        return []
