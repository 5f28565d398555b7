"""The model of a run, as the metadata of its files describe it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError, RunnerError
from runner.core.model_spec import Output
from runner.vggish.spec import VGGISH

if TYPE_CHECKING:
    from runner.core.model_spec import ModelSpec

METADATA_PREFIX = "vggish_runner."
"""The beginning of this project's keys in a Parquet file's metadata."""

_RESERVED = ("clip", "example", "start_s", "padded", "label", "embedding_pca", "embedding_u8")
"""Columns of embeddings' files that are no model's."""

CLASSES = "classes."
"""The beginning of the keys with the names of an output's classes, a JSON list."""


@dataclass(frozen=True)
class RunModel:
    """The model whose outputs are a run's columns.

    Attributes:
        title: its name for people.
        outputs: in the order of the columns.
        sample_rate: Hz of the waveform that it takes.
        window_samples: samples of one window.
        example_s: seconds that an example stands for.
    """

    title: str
    outputs: tuple[Output, ...]
    sample_rate: int
    window_samples: int
    example_s: float

    @classmethod
    def of(cls, spec: ModelSpec) -> RunModel:
        """Return the model of a specification."""
        return cls(spec.title or spec.name, spec.outputs, spec.sample_rate, spec.window_samples, spec.example_s)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> RunModel:
        """Return the model of ``to_metadata``, in metadata with or without ``METADATA_PREFIX``.

        Files of earlier versions, which have none of it, are VGGish's.
        """
        own = {key.removeprefix(METADATA_PREFIX): value for key, value in metadata.items()}
        default = cls.of(VGGISH)
        return cls(
            title=own.get("model", default.title),
            outputs=_parse_outputs(own) if "outputs" in own else default.outputs,
            sample_rate=int(own.get("sample_rate", default.sample_rate)),
            window_samples=int(own.get("window_samples", default.window_samples)),
            example_s=float(own.get("example_s", default.example_s)),
        )

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata that describe the model in the files of a run."""
        return {
            "model": self.title,
            "outputs": ",".join(f"{output.name}:{output.width}" for output in self.outputs),
            "sample_rate": str(self.sample_rate),
            "window_samples": str(self.window_samples),
            "example_s": str(self.example_s),
            **{
                f"{CLASSES}{output.name}": json.dumps(output.classes, ensure_ascii=False)
                for output in self.outputs
                if output.classes
            },
        }

    @property
    def window_s(self) -> float:
        """Seconds of one window."""
        return self.window_samples / self.sample_rate

    def output(self, name: str | None, location: str) -> Output:
        """Return the output of a name, the first one for None.

        Args:
            name: of the output.
            location: of the run, for the message.

        Raises:
            RunnerError: the model has no such output.
        """
        if name is None:
            return self.outputs[0]
        for output in self.outputs:
            if output.name == name:
                return output
        names = ", ".join(output.name for output in self.outputs)
        raise RunnerError(f"{location} has no output {name}: {self.title} has {names}")


def check_outputs(outputs: Sequence[Output]) -> None:
    """Check that the names of outputs can be columns of files.

    Raises:
        ConfigError: one can't.
    """
    names = [output.name for output in outputs]
    for name in names:
        if name in _RESERVED or names.count(name) > 1 or not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(
                f"the model's output {name!r} can't be a column of files: give it a name of its own, of letters, "
                f"digits, _ and -, other than {', '.join(_RESERVED)}"
            )


def _parse_outputs(metadata: Mapping[str, str]) -> tuple[Output, ...]:
    outputs = []
    for text in metadata["outputs"].split(","):
        name, _, width = text.rpartition(":")
        outputs.append(Output(name, int(width), tuple(json.loads(metadata.get(f"{CLASSES}{name}", "[]")))))
    return tuple(outputs)
