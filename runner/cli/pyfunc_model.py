"""The model as MLflow loads it: this file and the SavedModel next to it, without the rest of this package."""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Embedder(PythonModel):
    """Embed waveforms with the exported SavedModel."""

    def load_context(self, context: Any) -> None:
        """Load the SavedModel."""
        import tensorflow as tf

        self._model = tf.saved_model.load(context.artifacts["saved_model"])

    def predict(self, context, model_input, params=None):  # type: ignore  # MLflow takes hints for a schema
        """Embed a batch of clips of the same length.

        Args:
            context: MLflow's.
            model_input: float32 [batch, samples], mono 16 kHz in -1..1.
            params: not used.

        Returns:
            float32 [batch, examples, 128].
        """
        import tensorflow as tf

        return self._model.signatures["waveform"](tf.constant(model_input, tf.float32))["embeddings"].numpy()


set_model(Embedder())
