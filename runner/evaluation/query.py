"""The query of a search: embeddings of an audio file, or of a clip of the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runner.core.errors import ClipError, RunnerError
from runner.vggish.spec import VGGISH

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

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
    from runner.inference.api import load_vggish_model
    from runner.inference.tensorflow_import import import_tensorflow, without_library_notes

    about = {key.removeprefix("vggish_runner."): value for key, value in reader.metadata.items()}
    # files of early versions have these two keys only
    early = {f"frontend.{key}": about[key] for key in ("hop_s", "resampler") if key in about}
    frontend = FrontendConfig.from_metadata(early | about)
    try:
        with read_clip(path, start_s, end_s, preparation=frontend.preparation(VGGISH)) as clip:
            preparation = leveled(clip)
        with read_clip(path, start_s, end_s, preparation=preparation) as clip:
            samples = np.concatenate(list(clip))
    except ClipError as error:
        raise RunnerError(f"{path} cannot be the query: {error}") from error
    weights, seed = _weights_of(reader)
    with without_library_notes():
        import_tensorflow()
        session = load_vggish_model("cpu", models=models, weights=weights, seed=seed)
    checksum = str(session.metadata.weights.checksum)
    expected = about.get("weights.checksum", "unknown")
    if checksum != expected:
        raise RunnerError(
            f"{reader.location} was embedded with other weights (checksum {expected[:12]}) than those found here "
            f"({checksum[:12]}): search with --clip, or restore the run's weights"
        )
    return session.embed_waveform(samples, VGGISH.sample_rate, hop_s=frontend.hop_s)


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


def _weights_of(reader: EmbeddingReader) -> tuple[str, int]:
    """Return the arguments ``weights`` and ``seed`` of ``load_vggish_model`` that load the run's weights."""
    source = reader.metadata.get("vggish_runner.weights.source")
    if source == "audioset":
        return source, 0
    settings = reader.settings()
    if source == "random":
        return source, int(str(settings["weights.seed"]))
    return str(settings["weights.path"]), 0
