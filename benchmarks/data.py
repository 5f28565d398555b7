"""What the benchmarks run on: synthesised recordings of ten seconds in six encodings, and random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

SECONDS = 10
KINDS = {
    "wav16": ("wav", "PCM_16", 16_000, 1),
    "wav44": ("wav", "PCM_16", 44_100, 2),
    "flac44": ("flac", "PCM_16", 44_100, 2),
    "ogg44": ("ogg", "VORBIS", 44_100, 2),
    "mp344": ("mp3", "MPEG_LAYER_III", 44_100, 2),
    "opus48": ("opus", "OPUS", 48_000, 2),
}
"""Extension, subtype, rate and channels of each data set."""


def make_clips(folder: Path, kind: str, clips: int) -> list[Path]:
    """Write ``clips`` recordings of a kind; those that are there already are kept."""
    extension, subtype, rate, channels = KINDS[kind]
    own = folder / kind
    own.mkdir(parents=True, exist_ok=True)
    paths = [own / f"{number:05d}.{extension}" for number in range(clips)]
    for surplus in set(own.iterdir()) - set(paths):
        surplus.unlink()
    for number, path in enumerate(paths):
        if not path.exists():
            # libsndfile's Vorbis encoder takes no more than a few seconds in one call
            container = "OGG" if extension == "opus" else None
            with soundfile.SoundFile(path, "w", rate, channels, subtype, format=container) as file:
                for block in np.array_split(recording(number, rate, channels), SECONDS):
                    file.write(block)
    return paths


def recording(seed: int, rate: int, channels: int) -> np.ndarray:
    """Ten seconds of voices and noise, float32 [samples, channels]."""
    rng = np.random.default_rng(seed)
    t = np.arange(SECONDS * rate) / rate
    sound = 0.05 * rng.standard_normal((len(t), channels))
    for _ in range(5):
        pitch, wobble, start = rng.uniform(80, 1200), rng.uniform(0.5, 8), rng.uniform(0, 6)
        envelope = np.clip(np.sin(2 * np.pi * wobble * (t - start)), 0, 1) * (t > start)
        voice = sum(np.sin(2 * np.pi * pitch * harmonic * t) / harmonic for harmonic in (1, 2, 3, 5))
        sound += 0.1 * (envelope * voice)[:, None] * rng.uniform(0.5, 1, channels)
    return np.clip(sound, -0.99, 0.99).astype(np.float32)


def make_checkpoint(folder: Path) -> Path:
    """Random weights as a TensorFlow checkpoint, whose path it gives; beside it ``weights.npz`` and ``vggish.pb``."""
    path, arrays_path = folder / "model.ckpt", folder / "weights.npz"
    if Path(f"{path}.index").exists() and arrays_path.exists():
        return path
    import tensorflow.compat.v1 as tf

    from runner.vggish.arrays import random_weights

    rng = np.random.default_rng(1)
    arrays = {
        name: rng.normal(0, 0.1, array.shape).astype(np.float32) if name.endswith("biases") else array
        for name, array in random_weights(0).items()
    }
    np.savez(arrays_path, **arrays)
    no_gpu = tf.ConfigProto(device_count={"GPU": 0})  # or TensorFlow would keep all of its memory from the contestants
    with tf.Graph().as_default(), tf.Session(config=no_gpu) as session:
        placeholders = {name: tf.placeholder(array.dtype, array.shape) for name, array in arrays.items()}
        variables = {name: tf.Variable(placeholders[name], name=name) for name in arrays}
        session.run(tf.global_variables_initializer(), {placeholders[name]: array for name, array in arrays.items()})
        tf.train.Saver(variables).save(session, str(path), write_meta_graph=False)
    with tf.Graph().as_default() as graph:
        from runner.vggish import network

        examples = tf.placeholder(tf.float32, [None, 96, 64], name="examples")
        tf.identity(network.embed(arrays, examples, tf.float32), name="embeddings")
        (folder / "vggish.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return path
