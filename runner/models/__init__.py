"""Embedding models: what another package needs to add one (docs/guides/models.md)."""

from runner.core.model_spec import ModelSpec, Output
from runner.models.base import EmbeddingModel

__all__ = ["EmbeddingModel", "ModelSpec", "Output"]
