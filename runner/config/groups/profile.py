"""``profile=``: measurements and plots besides the run itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from runner.config.checks import at_least, names_of, one_of
from runner.config.groups.device import DEVICES


@dataclass
class ProfileConfig:
    """Measurements and plots besides the run itself; all of them come after it."""

    name: str = "quick"
    """off, quick or full; the option sets it."""

    device_benchmark_s: dict[str, float] = field(default_factory=lambda: {"cpu": 0.0, "gpu": 0.25, "metal": 0.25})
    """Seconds for each benchmark (the model, matrix products) of the device alone, by kind of device; 0: none."""

    repeat_s: float = 0.0
    """Embed the clips again, without writing, for so many seconds, for a mean and a spread; 0: only as below."""

    min_batches: int = 0
    """The same for at least so many batches; 0: only as above."""

    sample_every_s: float = 0.5
    """Seconds between samples of memory, and in repeated passes of power; 0.05 or more."""

    plots: bool = True
    """Draw the run's plots."""

    projection: str = "pca"
    """Projection of the embeddings to a map in two dimensions: pca, umap (extra: umap) or none (no map)."""

    log_mels: int = 300
    """Points of the map that show their log-mel when clicked, spread evenly; 0: none."""

    batch_size_curve: bool = False
    """Measure the model's speed and memory over batch sizes."""

    trace: bool = False
    """Keep TensorFlow's profile of a few batches."""

    round: int = 1
    """A number without effect: swept first (``profile.round=1,2,3``) it repeats the jobs of a sweep in turns."""

    def __post_init__(self) -> None:
        names_of("profile.device_benchmark_s", self.device_benchmark_s, DEVICES[1:])
        for device in DEVICES[1:]:
            at_least(f"profile.device_benchmark_s.{device}", self.device_benchmark_s.get(device, -1.0), 0)
        at_least("profile.repeat_s", self.repeat_s, 0)
        at_least("profile.min_batches", self.min_batches, 0)
        at_least("profile.sample_every_s", self.sample_every_s, 0.05)
        at_least("profile.log_mels", self.log_mels, 0)
        one_of("profile.projection", self.projection, ("pca", "umap", "none"))
