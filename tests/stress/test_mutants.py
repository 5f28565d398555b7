"""The table of mutants is of the code and the tests as they are, and its tool tells what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress import mutants
from tests.stress.mutant_list import MUTANTS, Mutant
from tests.stress.mutants import DEATH, NOT_CAUGHT, PROJECT, Copies, Finding, TableError, mutated, verdict_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_of_the_code_and_the_tests_as_they_are(mutant: Mutant) -> None:
    path = PROJECT / "runner" / mutant.file
    source = path.read_text(encoding="utf-8")
    assert compile(mutated(mutant, source), str(path), "exec") != compile(source, str(path), "exec")
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (PROJECT / file).read_text(encoding="utf-8") if name else (PROJECT / file).is_file()


def test_the_mutants_have_names_of_their_own_and_the_record_has_all_of_them() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) == 64
    assert list(mutants.read_record(PROJECT / "tests" / "stress" / "mutants.tsv")) == names


def test_text_that_is_gone_is_an_error_that_says_so() -> None:
    mutant = Mutant("nothing works", "cli.py", "what was here", "what is here", "tests/test_cli.py")
    with pytest.raises(TableError, match=r"runner/cli\.py has 'what was here' 2 times, not once: mend"):
        mutated(mutant, "what was here, and what was here")


def test_what_fails_without_the_mutant_catches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(tmp_path, limit_s=10)

    def run(mutant: Mutant | None, tests: list[str], left_out: list[str]) -> str:
        if mutant is None:
            return "flaky" if tests == ["flaky"] else NOT_CAUGHT
        return next(test for test in ("flaky", "good") if test not in left_out)

    monkeypatch.setattr(copies, "_run", run)
    assert copies.examine(MUTANTS[0]).caught_by == "good"


@pytest.mark.parametrize(
    ("status", "failed", "verdict"),
    [(0, "", NOT_CAUGHT), (1, '{"test_a.py::test_b": true}', "test_a.py::test_b"), (1, "", DEATH), (-9, "", DEATH)],
)
def test_what_pytest_ends_with_is_understood(tmp_path: Path, status: int, failed: str, verdict: str) -> None:
    note = tmp_path / "lastfailed"
    if failed:
        note.write_text(failed)
    assert verdict_of(status, note, "") == verdict


def test_tests_that_are_gone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"not found: test_b: mend tests/stress/mutant_list\.py"):
        verdict_of(4, tmp_path / "lastfailed", "not found: test_b")


def test_a_record_is_compared_with_what_is_caught_now(tmp_path: Path) -> None:
    one, two, three = MUTANTS[:3]
    before = [Finding(one, "test_a", 1.0), Finding(two, "test_b", 1.0), Finding(three, NOT_CAUGHT, 1.0)]
    mutants.write_record(tmp_path / "record.tsv", dict(enumerate(before, 1)), "abc")
    record = mutants.read_record(tmp_path / "record.tsv")
    now = [Finding(one, "test_c", 1.0), Finding(two, NOT_CAUGHT, 1.0), Finding(three, NOT_CAUGHT, 1.0)]
    assert mutants.lost(record, now) == [f"{two.name} (was caught by test_b)"]
