"""A model of two outputs, one of them with classes, for tests of what a run does with a model's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from runner.config.schema import GROUPS, InstalledModel
from runner.core.model_spec import ModelSpec, Output
from runner.models import registry
from runner.models.base import EmbeddingModel

TOY = ModelSpec(
    name="toy",
    sample_rate=16_000,
    window_samples=15_600,
    hop_samples=15_360,
    outputs=(Output("embedding", 6), Output("scores", 4, ("ant", "bee", "cät, wild", "dog"))),
)


class Toy(EmbeddingModel):
    """The toy, of which a run in process loads no more than this."""

    spec = TOY

    def build(self, *arguments: object) -> Any:
        raise AssertionError("runs in process have a session of arithmetic")


@dataclass
class ToyModel(InstalledModel):
    """``model=toy``, while ``toy_is_an_option``."""

    name: str = "toy"

    @property
    def spec(self) -> ModelSpec:
        return TOY


@contextlib.contextmanager
def toy_is_an_option() -> Iterator[None]:
    """Let configurations have ``model.name=toy`` in the block."""
    with (
        mock.patch.dict(GROUPS["model"], toy=ToyModel),  # type: ignore[arg-type]
        mock.patch.object(registry, "load_installed_model", return_value=Toy),
    ):
        yield
