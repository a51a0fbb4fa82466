"""The plan is a pure function of the machine, and carrying it out changes no number."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

import thinksound
from thinksound.errors import InputError, PlacementError
from thinksound.families.find import family_of
from thinksound.families.protocol import TRANSFORMER
from thinksound.presets import LIGHT, PRESETS
from thinksound.request import Options
from thinksound.runtime.placement import (
    GPU,
    Machine,
    Placement,
    Plan,
    detect_machine,
    make_plan,
    memory_errors,
    one_device,
    runs_on,
)

pytestmark = pytest.mark.slow

NETWORKS = tuple(LIGHT.networks)

H200 = GPU("H200", 140 * 2**30, bfloat16=True)
RTX_4090 = GPU("RTX 4090", 24 * 2**30, bfloat16=True)
RTX_3060 = GPU("RTX 3060", 8 * 2**30, bfloat16=True)
T4 = GPU("T4", 15 * 2**30, bfloat16=False)
GT_1030 = GPU("GT 1030", 2 * 2**30, bfloat16=False)
GTX_1060 = GPU("GTX 1060", 6 * 2**30, bfloat16=False, usable=False)


def plan(*gpus: GPU, **wishes) -> Plan:
    return make_plan(Machine(gpus), LIGHT.networks, **wishes)


def test_without_a_gpu_everything_is_float32_on_the_cpu():
    made = plan()
    assert made.devices == dict.fromkeys(NETWORKS, "cpu")
    assert set(made.dtypes.values()) == {"float32"}
    assert not made.offload and not made.concurrent_encoding


def test_one_gpu_holds_everything():
    made = plan(H200)
    assert set(made.devices.values()) == {"cuda:0"}
    assert made.dtypes == dict.fromkeys(NETWORKS, "bfloat16") | {"vae": "float32"}
    assert not made.offload and made.concurrent_encoding


def test_two_gpus_split_encoders_from_transformer_and_vae():
    made = plan(RTX_4090, RTX_4090)
    assert made.devices == {
        "metaclip": "cuda:1",
        "t5": "cuda:1",
        "synchformer": "cuda:1",
        "dit": "cuda:0",
        "vae": "cuda:0",
    }
    assert plan(H200, H200, H200).devices == made.devices
    assert plan(RTX_4090, RTX_4090, device="cuda:1,cuda:0").devices["dit"] == "cuda:1"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_keeps_sound_in_float32_and_encoders_on_the_second_gpu(preset):
    made, sound = make_plan(Machine((H200, H200)), preset.networks), family_of(preset).sound_networks
    assert {name for name, dtype in made.dtypes.items() if dtype == "float32"} == set(sound)
    assert {name for name, device in made.devices.items() if device == "cuda:0"} == {TRANSFORMER, *sound}


def test_a_second_gpu_that_is_too_small_is_left_alone():
    assert plan(RTX_4090, GT_1030) == plan(RTX_4090)
    assert not plan(RTX_3060, RTX_3060).offload
    assert plan(RTX_4090, GT_1030, device="cuda:0,cuda:1").offload  # unless asked for


def test_gpus_without_code_for_them_are_not_used():
    assert plan(GTX_1060) == plan()
    assert set(plan(GTX_1060, RTX_4090).devices.values()) == {"cuda:1"}
    with pytest.raises(PlacementError, match=r"not built for GTX 1060 \(cuda:0\)"):
        plan(GTX_1060, device="cuda")


def test_a_single_network_goes_where_the_first_of_a_plan_would():
    for gpus in ((), (H200,), (RTX_4090, RTX_4090), (GTX_1060, RTX_4090)):
        assert one_device(Machine(gpus), "auto") == plan(*gpus).devices["dit"]
    assert one_device(Machine((H200, H200)), "cuda:1,cuda:0") == "cuda:1"
    with pytest.raises(PlacementError, match="no CUDA GPU"):
        one_device(Machine(), "cuda")


@pytest.mark.parametrize(
    ("built_for", "capability", "usable"),
    [
        (["sm_75", "sm_80", "sm_90"], (7, 5), True),
        (["sm_75", "sm_80", "sm_90"], (8, 9), True),
        (["sm_75", "sm_80", "sm_90"], (6, 1), False),
        (["sm_75", "sm_80", "sm_90"], (7, 0), False),
        (["sm_75", "sm_80", "sm_90"], (12, 0), False),
        (["sm_90a", "sm_120"], (12, 1), True),
        (["sm_80", "compute_90"], (12, 0), True),
        (["gfx90a", "gfx1100"], (11, 0), True),
    ],
)
def test_where_a_build_of_pytorch_runs(built_for, capability, usable):
    assert runs_on(built_for, *capability) is usable


def test_what_the_driver_lists_is_no_gpu_if_cuda_cannot_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert detect_machine() == Machine()


def test_float16_where_a_gpu_lacks_bfloat16():
    assert plan(T4).dtypes["dit"] == "float16"
    mixed = plan(H200, T4).dtypes
    assert (mixed["dit"], mixed["t5"]) == ("bfloat16", "float16")
    assert plan(H200, T4, device="cuda:0").dtypes["dit"] == "bfloat16"
    assert plan(T4, dtype="float32").dtypes == dict.fromkeys(NETWORKS, "float32")


def test_a_gpu_that_is_too_small_offloads_and_says_so():
    made = plan(RTX_3060)
    assert made.offload and not made.concurrent_encoding
    assert "RTX 3060 (cuda:0) has 8.0 GiB" in made.notes[0]
    assert not plan(RTX_4090).offload
    # float32 weights need 14.4 GB: a T4 offloads them, a 4090 does not.
    assert plan(T4, dtype="float32").offload and not plan(RTX_4090, dtype="float32").offload


def test_offloading_can_be_asked_for():
    assert plan(H200, offload=True).offload
    made = plan(offload=True)
    assert not made.offload and made.notes == ("offloading does nothing on a CPU",)


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:x", "cuda:0,cuda:1,cuda:2", "cpu,cuda:0", "", "CUDA:-1"]
)
def test_unknown_devices_are_refused(device):
    with pytest.raises(InputError, match="give auto, cpu, cuda"):
        plan(H200, device=device)


def test_absent_devices_are_refused_with_what_there_is():
    with pytest.raises(
        PlacementError, match=r"cuda:1 is not there; this machine has cuda:0 \(H200\); give cuda:0 or cpu"
    ):
        plan(H200, device="cuda:1")
    with pytest.raises(PlacementError, match="no CUDA GPU; give cpu"):
        plan(device="cuda")


def test_unknown_number_formats_are_refused():
    with pytest.raises(InputError, match="float8"):
        plan(H200, dtype="float8")


def test_offloaded_weights_go_home_after_each_visit():
    # The mechanism on a machine without a GPU: "meta" stands for the GPU, where nothing can be computed.
    network = torch.nn.Linear(3, 2)
    weight, before = network.weight, network.weight.clone()
    made = Plan(dict.fromkeys(NETWORKS, "meta"), dict.fromkeys(NETWORKS, "float32"), offload=True)
    placement = Placement(made)
    placement.place("dit", network)
    assert network.weight.device.type == "cpu"
    with placement.on_device("dit"):
        assert network.weight.device.type == "meta"
    assert network.weight is weight and torch.equal(weight, before)
    with pytest.raises(KeyError), placement.on_device("dit"):
        raise KeyError("a request that fails half-way")
    assert network.weight is weight


def test_offloaded_networks_of_two_requests_wait_for_each_other():
    made = Plan(dict.fromkeys(NETWORKS, "meta"), dict.fromkeys(NETWORKS, "float32"), offload=True)
    placement = Placement(made)
    networks = {name: torch.nn.Linear(3, 2) for name in ("dit", "vae")}
    for name, network in networks.items():
        placement.place(name, network)
    entered = threading.Event()

    def other_request() -> None:
        with placement.on_device("vae"):
            entered.set()

    thread = threading.Thread(target=other_request)
    with placement.on_device("dit"):
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()


def test_running_out_of_memory_says_what_to_try():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), MemoryError()):
        with pytest.raises(PlacementError, match="shorter duration, offloading"), memory_errors():
            raise error
    with pytest.raises(PlacementError, match="out of main memory"), memory_errors():
        torch.empty(2**60)
    with pytest.raises(PlacementError, match=r"out of main memory \(oneDNN .*; try"), memory_errors():
        raise RuntimeError("could not create a primitive")
    for said in ("CUDA error: out of memory\nCUDA kernel errors ...", "CUBLAS_STATUS_ALLOC_FAILED"):
        with pytest.raises(PlacementError, match="out of GPU memory; try"), memory_errors():
            raise torch.AcceleratorError(said)
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes do not match")


@pytest.fixture
def concurrent_pipeline():
    """The tiny networks with texts and pictures encoded in threads, as on GPUs."""
    pipeline = thinksound.load("tiny", None, "cpu")
    pipeline.placement.plan = Plan(dict.fromkeys(NETWORKS, "cpu:0"), pipeline.placement.plan.dtypes)
    assert pipeline.placement.plan.concurrent_encoding
    return pipeline


def test_encoding_side_by_side_changes_nothing(concurrent_pipeline, clips):
    request = (clips / "cfr25_1p0s.mp4", "rain", "rain on a roof", Options(1, seed=1))
    together = concurrent_pipeline(*request)
    assert torch.equal(together.waveform, thinksound.load("tiny", None, "cpu")(*request).waveform)


def test_memory_comes_back_when_an_encoder_runs_out_of_it(concurrent_pipeline, clips):
    held = []

    def run_out(*_: object) -> None:
        activations = torch.empty(0)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    concurrent_pipeline.model.metaclip.model.vision_model.register_forward_pre_hook(run_out)
    gc.disable()
    try:
        with pytest.raises(PlacementError, match="CUDA out of memory"):
            concurrent_pipeline(clips / "cfr25_1p0s.mp4")
        assert [tensor() for tensor in held] == [None]
    finally:
        gc.enable()


@pytest.mark.cuda
def test_placement_does_not_change_latents():
    frames = torch.randint(
        0, 256, (25, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    latents = {}
    wanted: dict[str, dict[str, Any]] = {"cpu": {"device": "cpu"}, "gpu": {}, "offload": {"offload": True}}
    for name, wishes in wanted.items():
        pipeline = thinksound.load("tiny", dtype="float32", **wishes)
        features = pipeline.encode({"clip": frames[:8], "sync": frames}, "rain", "rain on a roof")
        latents[name] = pipeline.sample(features, 1.0, Options(num_inference_steps=4, seed=1)).latents
    assert torch.equal(latents["gpu"], latents["offload"])
    assert torch.allclose(latents["gpu"], latents["cpu"], atol=1e-3)
