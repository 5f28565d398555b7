"""``model=savedmodel``: a model of others by its signature, with the windows that it takes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from runner.config.schema import AutoWeights, FrontendConfig, RandomWeights, SavedModelConfig
from runner.core.errors import ConfigError, WeightsError
from runner.core.model_spec import Output
from runner.devices.detection import DeviceType
from runner.inference.saved_model import _module
from runner.inference.session import EmbeddingSession
from runner.models.base import LoadedWeights, Target
from runner.models.savedmodel.model import SavedModel
from runner.models.savedmodel.program import load_function
from runner.weights.selection import WeightsRequest
from tests.models.saved import CLASSES, RATE, SAMPLES, expected, save

pytestmark = pytest.mark.slow

WINDOWS = np.random.default_rng(0).uniform(-0.5, 0.5, (3, SAMPLES)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tf: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tf, tmp_path_factory.mktemp("saved") / "model")


def model_of(folder: Path, **settings: object) -> SavedModel:
    values = {"path": str(folder), "sample_rate": RATE, "window_s": 5.0, "hop_s": 2.5, **settings}
    return SavedModel(SavedModelConfig(**values))  # type: ignore[arg-type]


def load(model: SavedModel) -> LoadedWeights:
    return model.load(model.choose_weights(WeightsRequest(AutoWeights(), Path("unused"))))


def rows_of(model: SavedModel) -> np.ndarray:
    program = model.make_program(load(model).arrays, Target(DeviceType.CPU))
    return program.embed(WINDOWS)


def test_the_outputs_that_are_a_vector_a_window_are_found_embeddings_first(folder: Path) -> None:
    model = model_of(folder)
    load(model)
    assert model.spec.outputs == (Output("embedding", 6), Output("scores", 4))
    assert (model.spec.sample_rate, model.spec.window_samples, model.spec.hop_samples) == (32_000, 160_000, 80_000)


def test_rows_are_the_outputs_side_by_side(folder: Path) -> None:
    rows = rows_of(model_of(folder))
    np.testing.assert_allclose(rows, np.concatenate(expected(WINDOWS), axis=1), atol=1e-4)


def test_outputs_are_written_in_the_order_asked_for(folder: Path) -> None:
    rows = rows_of(model_of(folder, outputs=["scores", "embedding"]))
    np.testing.assert_allclose(rows, np.concatenate(expected(WINDOWS)[::-1], axis=1), atol=1e-4)


@pytest.mark.parametrize(("batch", "rank"), [(1, 2), (None, 1)])
def test_a_model_of_one_window_at_a_time_is_called_for_each(
    tf: ModuleType, tmp_path: Path, batch: int | None, rank: int
) -> None:
    model = model_of(save(tf, tmp_path / "single", batch, rank=rank))
    rows = rows_of(model)
    np.testing.assert_allclose(rows, np.concatenate(expected(WINDOWS), axis=1), atol=1e-4)
    assert "one window at a time" in model.notes[0]


def test_a_function_of_the_object_is_a_signature_too(folder: Path) -> None:
    assert np.array_equal(rows_of(model_of(folder, signature="infer")), rows_of(model_of(folder)))


@pytest.mark.slow
def test_a_keras_file_is_loaded(tf: ModuleType, tmp_path: Path) -> None:
    inputs = tf.keras.Input([SAMPLES])
    network = tf.keras.Model(inputs, tf.keras.layers.Dense(3)(inputs))
    network.save(tmp_path / "model.keras")
    model = model_of(tmp_path / "model.keras")
    np.testing.assert_allclose(rows_of(model), network(WINDOWS).numpy(), atol=1e-5)
    assert model.spec.outputs == (Output("embedding", 3),)


@pytest.mark.slow
def test_our_own_export_gives_the_bits_of_vggish(tf: ModuleType, vggish: EmbeddingSession, tmp_path: Path) -> None:
    module, signatures = _module(vggish, "float32", FrontendConfig(), "{}")
    tf.saved_model.save(module, str(tmp_path / "exported"), signatures=signatures)
    model = model_of(tmp_path / "exported", signature="windows", sample_rate=16_000, window_s=0.975, hop_s=0.96)
    program = model.make_program(load(model).arrays, Target(DeviceType.CPU))
    windows = np.random.default_rng(2).uniform(-0.5, 0.5, (40, 15_600)).astype(np.float32)
    assert np.array_equal(program.embed(windows), vggish.embed_windows(windows))
    for_gpu = load_function(str(tmp_path / "exported"), "windows", 15_600, "gpu")
    compiled = tf.function(lambda rows: for_gpu(rows)["embeddings"], jit_compile=True)
    np.testing.assert_allclose(compiled(windows), vggish.embed_windows(windows), rtol=0, atol=5e-5)


def test_an_insane_window_has_a_row_of_nan_and_the_others_their_bits(folder: Path) -> None:
    model = model_of(folder)
    program = model.make_program(load(model).arrays, Target(DeviceType.CPU))
    harmed = WINDOWS.copy()
    harmed[1, 17] = np.inf
    rows, plain = program.embed(harmed), program.embed(WINDOWS)
    assert np.isnan(rows[1]).all()
    assert np.array_equal(rows[[0, 2]], plain[[0, 2]])


def test_the_gate_compares_with_the_model_on_the_cpu_in_float32(folder: Path, tmp_path: Path) -> None:
    model = model_of(folder)
    answers = model.answers(load(model), tmp_path, "tf32")
    assert answers.exact.shape == (16, 10)
    assert answers.rounded is None
    assert answers.reference == "the same model in float32 on the CPU"
    assert model.answers(load(model), tmp_path, "tf32").cached
    of_scores = model_of(folder, outputs=["scores"])
    assert of_scores.answers(load(of_scores), tmp_path, "float32").exact.shape == (16, 4)


def test_the_names_of_classes_belong_to_the_output_with_as_many_scores(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    model = model_of(folder, classes=str(tmp_path / "names.txt"))
    load(model)
    assert model.spec.outputs[1] == Output("scores", 4, CLASSES)
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(ConfigError, match=r"has 1 lines, and not one output has as many values \(embedding 6, scores"):
        load(model)


def test_another_model_has_another_checksum(tf: ModuleType, folder: Path, tmp_path: Path) -> None:
    assert load(model_of(folder)).checksum == load(model_of(folder)).checksum
    assert load(model_of(save(tf, tmp_path / "other", 1))).checksum != load(model_of(folder)).checksum


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"signature": "embed"}, "has no signature embed: use model.signature=serving_default or infer"),
        ({"outputs": ["logits"]}, "logits is no output of the model: use embedding, scores"),
        ({"outputs": ["frames"]}, "frames is not one vector a window: use embedding, scores"),
        ({"window_s": 3.0}, r"takes no waveform: it needs one input \[batch, 96000\] or \[96000\] of float32"),
    ],
)
def test_what_a_model_does_not_have_is_a_sentence(folder: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        load(model_of(folder, **settings))


def test_a_file_that_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist: give a SavedModel's folder"):
        load(model_of(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty can't be loaded \(OSError"):
        load(model_of(tmp_path / "empty"))


def test_a_custom_operation_is_a_sentence(tf: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise FileNotFoundError("Op type not registered 'Sentencepiece' in binary running on here.")

    monkeypatch.setattr(tf.saved_model, "load", fail)
    with pytest.raises(WeightsError, match="needs the custom operation Sentencepiece, which TensorFlow does not have"):
        load(model_of(folder))


def test_a_model_at_a_url_is_downloaded_once(folder: Path, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket/models/perch", recursive=True)
    model = model_of(Path("unused"), path="memory://bucket/models/perch/")
    choice = model.choose_weights(WeightsRequest(AutoWeights(), tmp_path))
    model.load(choice)
    assert model.spec.width == 10
    store.rm("/bucket/models/perch", recursive=True)
    assert model.choose_weights(WeightsRequest(AutoWeights(), tmp_path)) == choice
    missing = model_of(Path("unused"), path="memory://bucket/models/other")
    with pytest.raises(WeightsError, match="memory://bucket/models/other does not exist"):
        missing.choose_weights(WeightsRequest(AutoWeights(), tmp_path))


def test_weights_of_their_own_are_of_no_use(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights=random is of no use: model=savedmodel has its own"):
        model_of(folder).choose_weights(WeightsRequest(RandomWeights(), Path("unused")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": None}, "model=savedmodel needs model.path"),
        ({"window_s": 0.00001}, "use a whole number of samples"),
        ({"window_s": 0.0}, "model.window_s=0.0 is not above 0 seconds"),
        ({"sample_rate": 1}, "model.sample_rate=1 is too small"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_of(Path("m"), **settings)
