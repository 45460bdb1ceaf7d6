"""The CUDA path without a GPU: tensors that say that they are on `cuda` and hold their values on the CPU.

torch's FakeTensorMode has devices but no values, so evaluation and re-ranking, which depend on values, cannot run in
it. `FakeGPU` keeps both: it raises where devices are mixed, as CUDA does, and lists every operation for which the CPU
would wait. What it cannot show is in docs/gpu_checklist.md.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import ROOT, start_training
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from config import Config, load_preset
from config.config import METRIC_LOSSES, SETTINGS
from config.presets import describe_presets
from datasets.cache import Images
from processor.environment import pick_device
from processor.evaluate import do_inference, score_features
from processor.train import add_losses, train_step
from solver.average import update_average

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
HOUSE = str(ROOT)
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MIXED = COPIES | INDEXING
# Their result, or its shape, depends on values on the device.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor, aten.bincount.default,
    aten.equal.default,
}  # fmt: skip


class OnGPU(torch.Tensor):
    """A tensor on cuda:0 for all Python code; torch's own code, autograd above all, sees one on the CPU."""

    value: torch.Tensor
    device, is_cuda = CUDA, True

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> "OnGPU":
        layout = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, value.size(), **layout, device="cpu")
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return GPU.call(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = func is torch.Tensor.to and "cpu" in map(str, (*args[1:], *kwargs.values()))
        if func is torch.Tensor.cpu or to_cpu:  # torch's own code would do nothing
            return aten._to_copy.default(args[0], device=CPU)
        if func in (torch.Tensor.numpy, torch.Tensor.tolist):
            return func(args[0].cpu())  # CUDA's raises for numpy
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


class FakeGPU(TorchDispatchMode):
    """Inside, there is a device `cuda:0`. `waits` lists the operations for which the CPU would wait."""

    def __init__(self):
        super().__init__()
        self.waits: list[tuple] = []  # with the line that ran them
        self.pinned: set[int] = set()  # addresses of page-locked memory
        self.backward = False  # autograd runs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func, args: tuple, kwargs: dict) -> Any:
        """Run an operation on the values, and put the result on the device on which it belongs."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, OnGPU)]
        device = kwargs.get("device") or (CUDA if there else CPU)
        if self.backward or (there and func is not aten._to_copy.default):
            device = CUDA  # torch's own code asks its arguments for their device, and sees the CPU
        if func is aten.is_pinned.default:
            return self.address(args[0]) in self.pinned
        if self.waits_for(func, args, kwargs, device):
            places = ((f.f_code.co_filename, line) for f, line in traceback.walk_stack(None))
            self.waits.append(
                (str(func), next((p for p in places if p[0].startswith(HOUSE) and p[0] != __file__), None))
            )
        here = [x for x in tensors if x.ndim and not isinstance(x, OnGPU)]
        if there and here and func not in MIXED:
            raise RuntimeError(f"{func} of tensors on cpu and on cuda")
        values, options = tree_map_only(OnGPU, lambda x: x.value, (args, kwargs))
        options |= {"device": CPU} if kwargs.get("device") else {}
        pin = options.pop("pin_memory", False) or func is aten._pin_memory.default
        result = values[0].clone() if func is aten._pin_memory.default else func(*values, **options)
        if func is aten.copy_.default:
            return args[0]
        if pin:
            self.pin(result)
        if device.type == "cpu":
            return result
        known = {id(x.value): x for x in there}  # what is changed in place stays the same tensor
        return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else OnGPU(x), result)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note that this memory is page-locked: from it the GPU copies by itself."""
        self.pinned.add(self.address(tensor))
        return tensor

    @staticmethod
    def address(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def waits_for(self, func, args: tuple, kwargs: dict, device: torch.device) -> bool:
        """Whether the CPU waits for the GPU to run this."""
        if func in INDEXING and isinstance(args[0], OnGPU):
            index = [x for x in args[1] if x is not None]
            return any(x.dtype is torch.bool or not isinstance(x, OnGPU) for x in index)
        if func not in COPIES:
            return device.type == "cuda" and func in WAITING
        to, source = (device, args[0]) if func is aten._to_copy.default else (args[0], args[1])
        quick = kwargs.get("non_blocking", False) or True in args[2:]
        for x, y in zip(*([z] if isinstance(z, torch.Tensor | torch.device) else z for z in (to, source)), strict=True):
            x = x if isinstance(x, torch.device) else x.device
            if x.type != y.device.type and not (quick and x.type == "cuda" and self.address(y) in self.pinned):
                return True
        return False


GPU = FakeGPU()


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeGPU]:
    """The code runs on `cuda:0`."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda:0") starts on the CPU
    for name, value in {
        "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
        "get_device_name": "no GPU",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_args, value=value, **_options: value)
    read, autocast, backward = Images.read, torch.autocast, torch.autograd.backward

    def run_backward(loss: torch.Tensor, *args, **options) -> None:
        GPU.backward = isinstance(loss, OnGPU)
        try:
            backward(loss, *args, **options)
        finally:
            GPU.backward = False

    def read_pinned(images: Images, indices, pin: bool = False) -> torch.Tensor:  # in a thread of its own
        batch = read(images, indices)
        return GPU.pin(batch) if pin else batch

    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # by torch's version
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda _self: None, raising=False)
    group = torch._C._group_tensors_by_device_and_dtype  # for the optimizers: in C++, where the tensors are on the CPU
    monkeypatch.setattr(
        torch._C, "_group_tensors_by_device_and_dtype",
        lambda *args: {(args[0][0][0].device, dtype): rows for (_, dtype), rows in group(*args).items()},
    )  # fmt: skip
    monkeypatch.setattr(torch.autograd, "backward", run_backward)
    monkeypatch.setattr(torch, "autocast", lambda _cuda, *args, **options: autocast("cpu", *args, **options))
    monkeypatch.setattr(Images, "read", read_pinned)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a value cannot move to another class of tensor
    GPU.waits.clear(), GPU.pinned.clear()
    with GPU:
        yield GPU
    torch.__future__.set_overwrite_module_params_on_conversion(before)
    torch._C._set_only_lift_cpu_tensors(False)


def test_the_fake_gpu_raises_and_lists_what_a_gpu_would(gpu):
    x = torch.ones(2, 3, device="cuda:0")
    with pytest.raises(RuntimeError, match="cpu and on cuda"):
        x + torch.ones(2, 3)
    fast = torch.ones(3).pin_memory().to("cuda:0", non_blocking=True) + x * torch.tensor(2.0)
    assert fast.device == CUDA and not gpu.waits
    for wait in (
        lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0], lambda: x[torch.tensor([0])], lambda: x.unique(),
        lambda: bool(x.any()), lambda: x.cpu(), lambda: torch.ones(3).to("cuda:0"), lambda: x.copy_(torch.ones(2, 3)),
        lambda: torch.ones(3).to("cuda:0", non_blocking=True), lambda: torch.tensor(1.0, device="cuda:0"),
    ):  # fmt: skip
        gpu.waits.clear()
        wait()
        assert gpu.waits
    weight = torch.ones(3, device="cuda:0", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ weight).dtype is torch.bfloat16
    (x @ weight).sum().backward()
    assert weight.grad.tolist() == [2, 2, 2] and weight.grad.device == CUDA


# ---- training and evaluation


def config(base: Path, preset: str, **changes: Any) -> Config:
    """A preset in small, on the GPU."""
    write_tree(base / "data" / "demo", train_ids=4, test_ids=2, cameras=2)
    cfg, small = load_preset(preset), tiny_config(base)
    same = ("dataset", "data_root", "log_dir", "batch_size", "images_per_id", "test_batch_size", "workers", "weights")
    cfg = cfg.replace(**{name: small.get(name) for name in same}, device="cuda:0", cuda_graph=False, test_dataset="")
    cfg = cfg.replace(height=round(cfg.data.height * 32 / cfg.data.width), width=32, protocol="auto", start_sizes=())
    return cfg.replace(freeze_epochs=0.0, flip=True, rerank=True, **changes).check()


def train_and_evaluate(cfg: Config) -> tuple[list[float], Any]:
    """The losses of an epoch, in which nothing waits but the log, and the scores."""
    state, network, data = start_training(cfg)
    recent, batches = [], data.train.epoch(0, state.session.device)
    GPU.waits.clear()
    while state.step < len(data.train):
        recent.append(train_step(state, network, batches, cfg.loop.accumulate))
        state.step += len(recent[-1])
        if state.average is not None:
            update_average(cfg, state.average, state.model, state.step)
    assert not GPU.waits
    add_losses(state, recent, data.train)
    assert len(GPU.waits) == (state.session.device.type == "cuda")
    losses = [float(value) for group in recent for step in group for value in step.values()]
    return losses, do_inference(cfg, state.eval_model, data.query, data.gallery, state.session.device)


SOON = ("demo",)  # the others take seconds


@pytest.mark.parametrize(
    "preset", [*SOON, *(pytest.param(x, marks=pytest.mark.slow) for x in describe_presets() if x not in SOON)]
)
def test_the_steps_of_a_preset_wait_for_nothing(preset, tmp_path, gpu):
    losses, inference = train_and_evaluate(config(tmp_path, preset))
    assert np.isfinite(losses).all() and inference.scores["flip+rerank"].mAP > 0


EVERYTHING: dict[str, Any] = {f"{name}_weight": 0.1 for name in METRIC_LOSSES} | {
    "center_weight": 0.1, "clip_grad": 1.0, "ema_decay": 0.5, "accumulate": 2, "optimizer": "sgd",
    "backbone": "mobilenet_v2", "width_multiplier": 0.25,
    "query_expansion": 2, "augmentation_k": 2, "roc": True, "by_camera": True,
}  # fmt: skip
EVERYTHING |= {name: 0.5 for name in Config().to_dict() if name.endswith("_prob")}
EVERYTHING["translate_prob"] = 0.0  # torchvision enlarges integers on a CPU, floats on a GPU: pixels differ by 1


@pytest.mark.parametrize("precision", ["float32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_all_losses_transforms_and_scores_are_those_of_the_cpu(precision, tmp_path, gpu):
    cfg = config(tmp_path, "demo", precision=precision, **EVERYTHING)
    (losses, there), (expected, here) = map(train_and_evaluate, (cfg, cfg.replace(device="cpu")))
    assert np.array_equal(losses, expected, equal_nan=True) and there.scores.keys() == here.scores.keys()
    for one, other in zip(there.scores.values(), here.scores.values(), strict=True):
        assert (one.mAP, one.mINP, one.cmc.tolist()) == (other.mAP, other.mINP, other.cmc.tolist())
    assert torch.equal(there.reranked.cpu(), here.reranked)


CHOSEN = ("branches", "head", "attention", "pooling", "optimizer", "id_loss", "triplet")
PARTS = {name: get_args(SETTINGS[name].type) for name in CHOSEN}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(max(map(len, PARTS.values()))))
def test_parts_that_no_preset_has_wait_for_nothing(number, tmp_path, gpu):
    parts = {name: values[number % len(values)] for name, values in PARTS.items()}
    if parts["branches"] != "one":
        parts |= {"attention": "none", "height": 96}  # six rows for PCB's parts
    losses, _ = train_and_evaluate(config(tmp_path, "tiny_b1", **parts))
    assert np.isfinite(losses).all()


def test_a_numbered_gpu_becomes_the_current_one(gpu, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    devices = [pick_device(name) for name in ("cuda:1", "cuda", "cpu")]
    assert chosen == devices[:1]


@pytest.mark.parametrize("protocol", ["multi_query", "single_shot", "vehicle_id"])
def test_the_protocols_score_on_the_gpu_as_on_the_cpu(protocol, gpu):
    features, pids = torch.randn(60, 8), np.arange(60) % 12
    ids = pids[:20], pids[20:], np.zeros(20, int), 1 + np.arange(40) % 2
    cfg = Config(protocol=protocol, rerank=True, trials=2)
    results = []
    for x in (features, features.to("cuda:0")):
        results.append(score_features(cfg, {"plain": (x[:20], x[20:])}, ids).scores)
    assert [s.mAP for s in results[0].values()] == [s.mAP for s in results[1].values()]
