"""``model.layer``: VGGish's hidden layers as outputs."""

from __future__ import annotations

import numpy as np
import pytest

from runner.core.errors import ConfigError
from runner.devices.detection import DeviceType
from runner.devices.instruction_sets import InstructionSets
from runner.inference.precision import choose_precision
from runner.models.base import LoadedWeights, Target
from runner.models.signals import fixed_signals
from runner.models.vggish.model import VGGish
from runner.vggish.spec import LAYER_WIDTHS, vggish_spec
from runner.weights.selection import WeightsChoice
from tests.configs import make_config
from tests.reference import CPU, reference_log_mel, reference_network

CHOICE = WeightsChoice("random", "random", None, None, 7, "for tests", is_random=True)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["pool4", "fc1", "fc2"])
def test_a_layer_has_the_references_values(weights: dict[str, np.ndarray], layer: str) -> None:
    model, signals = VGGish("direct", vggish_spec(layer)), fixed_signals()[:3]
    exact = model.reference(weights, signals, "float32")
    rows = model.make_program(dict(weights), Target(DeviceType.CPU)).embed(signals)
    assert rows.shape == exact.shape == (3, LAYER_WIDTHS[layer])
    assert np.abs(rows - exact).max() < 1e-5 * np.abs(exact).max()
    assert (exact >= 0).all()
    assert (exact > 0).any()


@pytest.mark.slow
def test_the_embedding_is_a_product_of_the_last_hidden_layer(weights: dict[str, np.ndarray]) -> None:
    signals = fixed_signals()[:2]
    hidden = VGGish(spec=vggish_spec("fc2")).reference(weights, signals, "float32").astype(np.float64)
    log_mel = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    embeddings = hidden @ weights["vggish/fc2/weights"] + weights["vggish/fc2/biases"]
    np.testing.assert_allclose(embeddings, reference_network(weights, log_mel), rtol=1e-5, atol=1e-6)


def test_a_layer_has_answers_of_its_own_in_the_cache(weights: dict[str, np.ndarray]) -> None:
    versions = {VGGish(spec=vggish_spec(layer)).reference_version for layer in LAYER_WIDTHS}
    assert len(versions) == len(LAYER_WIDTHS)


def test_the_embedding_is_the_default_and_alone_has_pca() -> None:
    assert make_config(["dataset=demo"]).model.spec.outputs[0].name == "embedding"
    with pytest.raises(ConfigError, match=r"output\.postprocess=pca needs PCA parameters"):
        make_config(["dataset=demo", "model.layer=fc1", "output.postprocess=pca"])
    with pytest.raises(ConfigError, match=r"model\.layer=fc3 is not an option"):
        make_config(["dataset=demo", "model.layer=fc3"])


def test_loaded_weights_keep_their_checksum_whatever_the_layer(weights: dict[str, np.ndarray]) -> None:
    sums = {VGGish(spec=vggish_spec(layer)).checksum(weights) for layer in ("embedding", "fc1")}
    assert len(sums) == 1
    assert LoadedWeights(CHOICE, weights, sums.pop()).pca is None


def test_auto_chooses_among_the_precisions_of_the_model() -> None:
    cpu = InstructionSets(frozenset({"amx_bf16"}))
    assert choose_precision("auto", CPU, cpu).effective == "bfloat16"
    limited = choose_precision("auto", CPU, cpu, ("float32", "tf32"))
    assert limited.effective == "float32"
    assert "the model can't be computed in bfloat16" in limited.reason
    with pytest.raises(ConfigError, match="precision=bfloat16 is not possible with model=savedmodel"):
        make_config(["dataset=demo", "model=savedmodel", "model.path=m", "precision=bfloat16"])
