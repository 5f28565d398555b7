"""The memory policy's plan, and precision's choice: pure decisions."""

import functools
from dataclasses import replace

import pytest

from runner.audio.framing import slot_bytes
from runner.config.composition import compose_config
from runner.config.schema import MemoryConfig
from runner.core.errors import ConfigError
from runner.devices.detection import DeviceInfo, DeviceType, GpuDetails
from runner.devices.instruction_sets import InstructionSets
from runner.inference import memory
from runner.inference.memory import MAX_BATCH, ceiling_mib
from runner.inference.precision import choose_precision
from runner.vggish.spec import VGGISH
from runner.yamnet.spec import YAMNET

BATCHES = {"cpu": 64, "gpu": 512, "metal": 128}


def policy(**settings: object) -> MemoryConfig:
    return MemoryConfig(default_batch_size=BATCHES, **({"host_limit_mib": None} | settings))


plan_memory = functools.partial(memory.plan_memory, spec=VGGISH)


@pytest.mark.parametrize("device", [DeviceType.CPU, DeviceType.GPU, DeviceType.METAL])
def test_batch_size_follows_the_device_unless_set(device: DeviceType) -> None:
    assert plan_memory(policy(), device, 8).batch_size == BATCHES[device.value]
    assert plan_memory(policy(batch_size=7), device, 8).batch_size == 7


def test_a_gpu_gets_more_decode_processes_than_a_cpu() -> None:
    assert plan_memory(policy(), DeviceType.GPU, 16).decode_workers == 16
    assert plan_memory(policy(), DeviceType.CPU, 16).decode_workers == 8
    assert plan_memory(policy(), DeviceType.CPU, 2).decode_workers == 2
    assert plan_memory(policy(), DeviceType.CPU, 64).decode_workers == 32
    assert plan_memory(policy(decode_workers=3), DeviceType.CPU, 16).decode_workers == 3
    of_kind = policy(default_decode_workers={"gpu": 6})
    assert [plan_memory(of_kind, DeviceType.GPU, cores).decode_workers for cores in (2, 16)] == [2, 6]
    assert plan_memory(of_kind, DeviceType.CPU, 16).decode_workers == 8


def test_processes_write_the_shards_of_a_gpu_alone() -> None:
    assert [plan_memory(policy(), DeviceType.GPU, cores).writer_processes for cores in (2, 8, 16, 64)] == [1, 2, 4, 4]
    assert [plan_memory(policy(), DeviceType.GPU, cores, spec=YAMNET).writer_processes for cores in (2, 16)] == [2, 8]
    assert plan_memory(policy(), DeviceType.CPU, 16).writer_processes == 0
    assert plan_memory(policy(writer_processes=0), DeviceType.GPU, 16).writer_processes == 0
    assert plan_memory(policy(writer_processes=3), DeviceType.CPU, 16).writer_processes == 3


def test_each_kind_of_device_has_a_limit_of_host_memory_unless_one_is_set() -> None:
    by_kind: dict[str, object] = {"default_host_limit_mib": {"cpu": 1434, "gpu": 5000, "metal": 4096}}
    automatic = policy(host_limit_mib="auto", **by_kind)
    assert plan_memory(automatic, DeviceType.CPU, 2).host_limit_mib == 1434
    assert plan_memory(automatic, DeviceType.GPU, 2).host_limit_mib == 5000
    assert plan_memory(policy(host_limit_mib=3000, **by_kind), DeviceType.GPU, 2).host_limit_mib == 3000
    assert plan_memory(policy(host_limit_mib=None, **by_kind), DeviceType.GPU, 2).host_limit_mib is None


def test_writer_processes_are_cut_before_the_batch() -> None:
    plan = plan_memory(policy(batch_size=1024, queue_depth=1, host_limit_mib=3700), DeviceType.GPU, 16)
    assert (plan.batch_size, plan.decode_workers, plan.writer_processes) == (1024, 16, 0)
    assert plan.notes == ("writer_processes cut from 4 to 0: memory.host_limit_mib is 3700",)


def test_conservative_feeds_a_gpu_within_its_limit() -> None:
    conservative = compose_config(["memory=conservative"]).memory
    plan = plan_memory(conservative, DeviceType.GPU, 16, precision="float16", gpu_mib=65_000)
    assert (plan.batch_size, plan.decode_workers, plan.host_limit_mib, plan.notes) == (256, 6, 2048, ())
    plan = plan_memory(conservative, DeviceType.CPU, 16)
    assert (plan.batch_size, plan.decode_workers, plan.host_limit_mib, plan.notes) == (128, 1, 1434, ())


def test_the_ceiling_cuts_the_queue_first_and_says_so() -> None:
    plan = plan_memory(policy(batch_size=64, queue_depth=200, host_limit_mib=1800), DeviceType.CPU, 2)
    assert plan.batch_size == 64
    assert 1 <= plan.queue_depth < 200
    assert any("queue_depth cut from 200" in note and "1800" in note for note in plan.notes)


def test_a_low_ceiling_cuts_the_batch_too() -> None:
    plan = plan_memory(policy(batch_size=512, queue_depth=4, host_limit_mib=1434), DeviceType.CPU, 2)
    assert plan.batch_size < 512
    assert any(note.startswith("batch_size cut from 512") for note in plan.notes)


@pytest.mark.parametrize(("cores", "gpus"), [(16, 1), (24, 1), (32, 1), (32, 2), (64, 4), (128, 8)])
def test_on_many_cores_a_gpu_keeps_a_batch_that_is_worth_launching(cores: int, gpus: int) -> None:
    balanced = policy(batch_size=1024, queue_depth=4, host_limit_mib=4096)
    plan = plan_memory(balanced, DeviceType.GPU, cores, gpus, precision="float16", gpu_mib=65_000)
    assert plan.batch_size >= 256
    assert plan.decode_workers >= 16
    slots_mib = (plan.decode_workers + plan.spare_slots) * slot_bytes(plan.batch_size, 15_600) / (1 << 20)
    assert 1230 + slots_mib + 70 * plan.decode_workers <= 4096
    low = plan_memory(policy(batch_size=256, host_limit_mib=1434), DeviceType.GPU, 4, 8)
    assert low.batch_size < 256  # a ceiling holds, whatever it costs
    assert low.decode_workers <= 8


@pytest.mark.parametrize(("device", "limit_mib"), [(DeviceType.CPU, 1434), (DeviceType.GPU, 4096)])
@pytest.mark.parametrize("window_samples", [160_000, 2_880_000])
def test_long_windows_make_small_batches(device: DeviceType, limit_mib: int, window_samples: int) -> None:
    asked = policy(batch_size=512, queue_depth=4, host_limit_mib=limit_mib)
    plan = plan_memory(asked, device, 4, spec=replace(VGGISH, window_samples=window_samples))
    slots_mib = (plan.decode_workers + plan.spare_slots) * slot_bytes(plan.batch_size, window_samples) / (1 << 20)
    assert 1230 + slots_mib + 70 * plan.decode_workers <= limit_mib
    assert plan.batch_size >= 1
    assert plan.batch_size < plan_memory(asked, device, 4).batch_size


def test_without_a_ceiling_nothing_is_cut() -> None:
    assert plan_memory(policy(batch_size=512, queue_depth=64), DeviceType.CPU, 2).notes == ()


def test_a_batch_whose_activations_overflow_is_cut() -> None:
    plan = plan_memory(policy(batch_size=100_000), DeviceType.GPU, 2)
    assert plan.batch_size == MAX_BATCH
    assert "2**31" in plan.notes[0]


def test_a_batch_that_the_gpu_has_no_room_for_is_cut() -> None:
    plan = plan_memory(policy(), DeviceType.GPU, 16, precision="float32", gpu_mib=4077)
    assert plan.batch_size == 128
    assert plan.notes == ("batch_size cut from 512 to 128: the GPU has 4,077 MiB for this run",)
    assert plan_memory(policy(), DeviceType.GPU, 16, precision="float16", gpu_mib=4077).batch_size == 512
    assert plan_memory(policy(), DeviceType.CPU, 16, gpu_mib=1).batch_size == 64


def test_the_ceiling_leaves_out_what_cuda_takes_in_any_case() -> None:
    assert ceiling_mib(policy(), DeviceType.GPU) is None
    assert ceiling_mib(policy(host_limit_mib=1434), DeviceType.CPU) == 1434
    assert ceiling_mib(policy(host_limit_mib=1434), DeviceType.GPU) == 2434


CPU = DeviceInfo(DeviceType.CPU, True, "Some CPU", "")
AMPERE = DeviceInfo(DeviceType.GPU, True, "A100", "", GpuDetails(compute_capability=(8, 0)))
TURING = DeviceInfo(DeviceType.GPU, True, "T4", "", GpuDetails(compute_capability=(7, 5)))
MODERN = InstructionSets(frozenset({"avx512f", "avx512_bf16", "amx_bf16"}))
ZEN4 = InstructionSets(frozenset({"avx512f", "avx512_bf16"}))
OLD = InstructionSets(frozenset({"avx2"}))


@pytest.mark.parametrize(
    ("requested", "device", "cpu", "effective"),
    [
        ("float32", CPU, OLD, "float32"),
        ("tf32", CPU, MODERN, "float32"),
        ("tf32", AMPERE, OLD, "tf32"),
        ("tf32", TURING, OLD, "float32"),
        ("auto", CPU, MODERN, "bfloat16"),
        ("auto", CPU, OLD, "float32"),
        ("auto", CPU, ZEN4, "bfloat16"),
        ("auto", CPU, replace(ZEN4, limit="AVX512_CORE_BF16"), "bfloat16"),
        ("auto", CPU, replace(ZEN4, limit="AVX512_CORE_VNNI"), "float32"),
        ("auto", CPU, replace(MODERN, limit="AVX512_CORE_AMX"), "bfloat16"),
        ("auto", CPU, replace(MODERN, limit="AVX512_CORE_BF16"), "float32"),
        ("auto", CPU, replace(MODERN, limit="AVX2"), "float32"),
        ("auto", CPU, replace(MODERN, onednn=False), "float32"),
        ("bfloat16", CPU, replace(MODERN, onednn=False), "bfloat16"),
        ("auto", AMPERE, OLD, "float16"),
        ("auto", TURING, OLD, "float16"),
        ("bfloat16", CPU, OLD, "bfloat16"),
    ],
)
def test_precision(requested: str, device: DeviceInfo, cpu: InstructionSets, effective: str) -> None:
    choice = choose_precision(requested, device, cpu)
    assert choice.effective == effective
    assert choice.reason


def test_a_precision_that_is_slow_or_absent_warns() -> None:
    assert "slow" in str(choose_precision("bfloat16", CPU, OLD).warning)
    assert choose_precision("bfloat16", CPU, MODERN).warning is None
    assert "TF32" in str(choose_precision("tf32", CPU, OLD).warning)


def test_a_limit_without_bfloat16_is_refused_and_named() -> None:
    limited = replace(MODERN, limit="AVX2")
    with pytest.raises(ConfigError, match="precision=bfloat16 is not possible under ONEDNN_MAX_CPU_ISA=AVX2"):
        choose_precision("bfloat16", CPU, limited)
    assert "ONEDNN_MAX_CPU_ISA=AVX2 leaves" in choose_precision("auto", CPU, limited).reason
    assert "TF_ENABLE_ONEDNN_OPTS=0" in str(choose_precision("bfloat16", CPU, replace(MODERN, onednn=False)).warning)


def test_a_precision_that_fails_parity_makes_way_for_the_next() -> None:
    tried = []
    choice = choose_precision("auto", AMPERE, OLD)
    while choice is not None:
        tried.append(choice.effective)
        last, choice = choice, choice.next("rel_err 1 is above 0.005")
    assert tried == ["float16", "bfloat16", "tf32", "float32"]
    assert last.reason == "tf32 failed parity (rel_err 1 is above 0.005); the next fastest is float32"
    assert choose_precision("float16", AMPERE, OLD).next("anything") is None


def test_every_gpu_has_its_batches_in_flight() -> None:
    one, two = (plan_memory(policy(), DeviceType.GPU, 16, count) for count in (1, 2))
    assert (one.in_flight, two.in_flight) == (4, 8)
    assert two.spare_slots == one.spare_slots + 4
