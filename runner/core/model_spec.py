"""The facts of an embedding model that everything around it needs: its rate, its windows and its outputs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """One of a model's outputs: a vector a window, float32 in the run's files.

    Attributes:
        name: of its column; no other output of the model has it.
        width: values of a vector.
        classes: for scores of classes, the name of each value's class; empty for embeddings.
    """

    name: str
    width: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A model from outside: mono waveform in windows of one length to one or more vectors a window.

    Inside the pipeline the outputs of a window are one row of float32, side by side in their order.

    Attributes:
        name: option of the group ``model``.
        sample_rate: Hz of its waveform.
        window_samples: samples of one window.
        hop_samples: samples from one window to the next, where ``frontend.hop_s`` does not say otherwise.
        outputs: in their order; the first is the one that is evaluated by default. Empty before the model is loaded,
            where only its file knows them.
        frame_samples: samples of one of the model's frames, where it has any: a padded tail needs a whole new one.
        frame_hop: samples from one frame to the next; a hop is a whole number of them.
        takes_int16: whether its program takes 16-bit samples as well as float32 ones.
        precisions: number formats that its network can be computed in; ``auto`` chooses among them.
        has_pca: whether AudioSet's PCA parameters apply to its first output.
        flop: multiplications and additions of a window; None where they were not counted.
        title: its name for people, where that is not ``name``.
        license: of the weights, as SPDX has it where it does.
        citation: the paper or page to cite.
    """

    name: str
    sample_rate: int
    window_samples: int
    hop_samples: int
    outputs: tuple[Output, ...]
    frame_samples: int = 1
    frame_hop: int = 1
    takes_int16: bool = True
    precisions: tuple[str, ...] = ("float32", "tf32")
    has_pca: bool = False
    flop: float | None = None
    title: str = ""
    license: str = ""
    citation: str = ""

    @property
    def width(self) -> int:
        """Values of a row: those of all outputs."""
        return sum(output.width for output in self.outputs)

    @property
    def hop_s(self) -> float:
        """Seconds from one window to the next."""
        return self.hop_samples / self.sample_rate

    @property
    def window_s(self) -> float:
        """Seconds of one window."""
        return self.window_samples / self.sample_rate

    @property
    def example_s(self) -> float:
        """Seconds that an example stands for: the hops of its frames, without the last frame's overlap."""
        return (self.window_samples - self.frame_samples + self.frame_hop) / self.sample_rate
