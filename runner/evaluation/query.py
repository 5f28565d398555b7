"""The query of a search: embeddings of an audio file, or of a clip of the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.errors import ClipError, RunnerError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from runner.config.schema import WeightsConfig
    from runner.models.base import EmbeddingModel
    from runner.output.reader import EmbeddingReader


def query_from_file(
    reader: EmbeddingReader, path: str, start_s: float | None, end_s: float | None, models: Path
) -> NDArray[np.float32]:
    """Embed an audio file as the run's clips were: the same weights, preparation and hop, in float32 on the CPU.

    Args:
        reader: of the run.
        path: an audio file.
        start_s: where the query begins in it, seconds; None for its beginning.
        end_s: where it ends; None for its end.
        models: the folder with the released weights.

    Returns:
        float32 [n, d].

    Raises:
        RunnerError: the file cannot be decoded, or the run's weights are not here or are others than they were.
    """
    from runner.audio.reader import leveled, read_clip
    from runner.config.groups.frontend import FrontendConfig
    from runner.config.schema import MemoryConfig
    from runner.inference.api import load_session
    from runner.inference.builder import DeviceRequest
    from runner.inference.tensorflow_import import import_tensorflow, without_library_notes

    about = {key.removeprefix("vggish_runner."): value for key, value in reader.metadata.items()}
    # files of early versions have these two keys only
    early = {f"frontend.{key}": about[key] for key in ("hop_s", "resampler") if key in about}
    frontend = FrontendConfig.from_metadata(early | about)
    model = _model_of(reader)
    try:
        with read_clip(path, start_s, end_s, preparation=frontend.preparation(model.spec)) as clip:
            preparation = leveled(clip)
        with read_clip(path, start_s, end_s, preparation=preparation) as clip:
            samples = np.concatenate(list(clip))
    except ClipError as error:
        raise RunnerError(f"{path} cannot be the query: {error}") from error
    with without_library_notes():
        import_tensorflow()
        session = load_session(model, _weights_of(reader), models, DeviceRequest("cpu"), MemoryConfig(name="query"))
    checksum = str(session.metadata.weights.checksum)
    expected = about.get("weights.checksum", "unknown")
    if checksum != expected:
        raise RunnerError(
            f"{reader.location} was embedded with other weights (checksum {expected[:12]}) than those found here "
            f"({checksum[:12]}): search with --clip, or restore the run's weights"
        )
    rows = session.embed_waveform(samples, model.spec.sample_rate, hop_s=frontend.hop_s)
    ends = np.cumsum([output.width for output in session.spec.outputs])
    names = [output.name for output in session.spec.outputs]
    return np.split(rows, ends[:-1], axis=1)[names.index(reader.output.name)]


def query_from_clip(
    reader: EmbeddingReader, clip: str, start_s: float | None, end_s: float | None
) -> NDArray[np.float32]:
    """Return the embeddings of a clip's examples that start from ``start_s`` to before ``end_s``, float32 [n, d].

    Raises:
        RunnerError: the run has no such clip, or none of its examples starts there.
    """
    own = reader.clip(clip)
    if own is None:
        raise RunnerError(f"{reader.location} has no clip {clip}: give its path as column clip of clips.parquet has it")
    first, end = -np.inf if start_s is None else start_s, np.inf if end_s is None else end_s
    query = own.embeddings[(own.starts_s >= first) & (own.starts_s < end)]
    if not len(query):
        raise RunnerError(f"no example of {clip} starts from {first:g} to {end:g} s: choose another --start or --end")
    return query


def _model_of(reader: EmbeddingReader) -> EmbeddingModel:
    """Return the run's model; files without a run's plan are taken for VGGish's."""
    from runner.config.schema import build_group
    from runner.models.registry import find_model

    try:
        settings = _section(reader, "model")
    except RunnerError:
        settings = {}
    return find_model(build_group("model", settings))


def _weights_of(reader: EmbeddingReader) -> WeightsConfig:
    """Return the configuration that loads the run's weights."""
    from runner.config.schema import AudiosetWeights, RandomWeights, build_group

    source = reader.metadata.get("vggish_runner.weights.source")
    if source == "audioset":
        return AudiosetWeights()
    settings = _section(reader, "weights")
    if source == "random":
        return RandomWeights(seed=int(str(settings["seed"])))
    weights: WeightsConfig = build_group("weights", settings)
    return weights


def _section(reader: EmbeddingReader, group: str) -> dict[str, Any]:
    """Return a group's settings of the run.

    Raises:
        RunnerError: the location is no run's, or has no plan any more.
    """
    prefix = f"{group}."
    return {key.removeprefix(prefix): value for key, value in reader.settings().items() if key.startswith(prefix)}
