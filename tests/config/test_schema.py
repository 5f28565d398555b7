"""Keys of the configuration: each is documented, and each default stands in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from runner.config.schema import schemas
from tests.commands import PROJECT

GROUPS = sorted((PROJECT / "runner/config/groups").glob("[a-z]*.py"))

OPTIONS = sorted(path for path in (PROJECT / "conf").glob("*/*.yaml") if path.parent.name != "experiment")


@pytest.mark.parametrize("module", GROUPS, ids=lambda path: path.stem)
def test_every_key_has_a_docstring(module: Path) -> None:
    for schema in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(schema, ast.ClassDef):
            for statement, below in zip(schema.body, [*schema.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    key = f"{schema.name}.{ast.unparse(statement.target)}"
                    assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), key  # noqa: PT018


@pytest.mark.parametrize("option", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_an_option_sets_only_the_keys_that_differ_from_their_default(option: Path) -> None:
    values = yaml.safe_load(option.read_text(encoding="utf-8")) or {}
    (entry,) = values.pop("defaults", [f"/schema/{option.parent.name}@_here_"])
    default = schemas()[entry.removeprefix("/schema/").removesuffix("@_here_")]
    for key, value in values.items():
        field = default.__dataclass_fields__[key]
        assert value != (field.default_factory() if callable(field.default_factory) else field.default), key
