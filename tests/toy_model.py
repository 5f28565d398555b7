"""A model of two outputs, one of them with classes, for tests of what a run does with a model's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

from runner.config.groups.model import ModelConfig
from runner.config.schema import GROUPS
from runner.core.model_spec import ModelSpec, Output

TOY = ModelSpec(
    name="toy",
    sample_rate=16_000,
    window_samples=15_600,
    hop_samples=15_360,
    outputs=(Output("embedding", 6), Output("scores", 4, ("ant", "bee", "cät, wild", "dog"))),
)


@dataclass
class ToyModel(ModelConfig):
    """``model=toy``, while ``toy_is_an_option``."""

    name: str = "toy"

    @property
    def spec(self) -> ModelSpec:
        return TOY


@contextlib.contextmanager
def toy_is_an_option() -> Iterator[None]:
    """Let configurations have ``model.name=toy`` in the block."""
    with mock.patch.dict(GROUPS["model"], toy=ToyModel):  # type: ignore[arg-type]
        yield
