"""An example of a model for vggish-runner: levels in octaves of a second of audio at 24 kHz, and loud or quiet."""

from itertools import pairwise

from runner.models import EmbeddingModel, ModelSpec, Output

RATE, BANDS = 24_000, 8


class Loudness(EmbeddingModel):
    """Two outputs of one window: the logarithm of the energy in octaves, and scores of two classes."""

    spec = ModelSpec(
        name="loudness",
        sample_rate=RATE,
        window_samples=RATE,  # one second
        hop_samples=RATE // 2,
        outputs=(Output("embedding", BANDS), Output("scores", 2, ("quiet", "loud"))),
        precisions=("float32",),
        license="MIT",
    )

    def random_weights(self, seed):
        """Draw the weights of the two classes: for weights=random."""
        import numpy as np

        return {"dense/kernel": np.random.default_rng(seed).standard_normal((BANDS, 2)).astype(np.float32)}

    def read_weights(self, path):
        """Read them from an .npz file: for weights=file weights.path=..."""
        import numpy as np

        with np.load(path) as file:
            return dict(file)

    def build(self, weights, precision, device):
        """Return the function from float32 windows [n, 24000] to outputs by name, of TensorFlow's operations."""
        import tensorflow as tf  # here, as the command reads ``spec`` without TensorFlow

        kernel = tf.Variable(weights.pop("dense/kernel"), trainable=False)

        def outputs(windows):
            power = tf.square(tf.abs(tf.signal.rfft(windows)))
            edges = [RATE // 2 >> octave for octave in range(BANDS)] + [0]
            bands = [tf.reduce_mean(power[:, low:high], axis=1) for high, low in pairwise(edges)]
            levels = tf.math.log(tf.stack(bands, axis=1) + 1e-6)
            return {"embedding": levels, "scores": tf.nn.softmax(tf.matmul(levels, kernel))}

        return outputs
