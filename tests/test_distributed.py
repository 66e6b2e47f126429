# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Two processes train as one does on both their images: data parallel, fully sharded (FSDP2), tensor parallel.

The processes are real ones and talk over the loopback interface (gloo, CPU). What they do is in
`distributed_worker.py`, whose `train` makes the reference here, in a single process on whole batches.
"""

import logging
import os
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm_process
from accelerate.utils import DistributedType
from distributed_worker import DTYPES, SCENARIOS, SECONDS, logits, train, trainer
from random_weights import randomize_, tiny_config
from safetensors.torch import load_file
from test_scripts import SCRIPTS
from torch import distributed
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from cait_hf import CaitForImageClassification, CaitForMaskedImageModeling
from cait_hf.modeling_cait import CaitClassLayer, CaitLayer
from cait_hf.training.models import has_unused_parameters
from cait_hf.training.trainer import log_strategy


pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this PyTorch is built without gloo"
)

WORKER = Path(__file__).with_name("distributed_worker.py")
# Of the largest value of a tensor. float64 leaves no room for a gradient that is nearly right.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a classifier and, in `masked`, of a masked image model; every parameter matters."""
    folder = tmp_path_factory.mktemp("distributed")
    randomize_(CaitForImageClassification(tiny_config())).save_pretrained(folder)
    randomize_(CaitForMaskedImageModeling(tiny_config())).save_pretrained(folder / "masked")
    return folder


@pytest.fixture(scope="module")
def processes(folder):
    """Two processes that went through all scenarios, or as far as they came: starting them takes longest."""
    with warm_process.two_ranks(WORKER, folder, *SCENARIOS, log=folder / "log") as processes:
        wait_for(processes)
    return processes


def wait_for(processes: list[BaseProcess]):
    """Until all have ended, or one has failed: the others would wait for it."""
    end = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            time.sleep(3)  # the others may have something to say about it
            return
        time.sleep(0.05)


def results_of(scenario: str, folder: Path, processes: list[BaseProcess]) -> dict:
    """What the first process found, after it was seen that both have the same weights."""
    files = [folder / f"{scenario}-{rank}.pt" for rank in (0, 1)]
    if not all(file.is_file() for file in files):
        logs = "".join(f"\n--- process {rank}\n{(folder / f'log{rank}.err').read_text()}" for rank in (0, 1))
        pytest.fail(f"processes ended with {[process.exitcode for process in processes]} before results{logs}")
    first, second = (torch.load(file) for file in files)
    assert_same_weights(first, second)
    return first


def assert_same_weights(first: dict, second: dict):
    if "weights" not in first:
        assert first.keys() == second.keys() and first
        for key in first:
            assert_same_weights(first[key], second[key])
        return
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


def assert_close(ours: dict, reference: dict, tolerance: float):
    """Both hold tensors by name. Where the gradient is zero but for noise (keys' biases), it is measured by 0.01."""
    assert ours.keys() == reference.keys()
    for name, expected in reference.items():
        assert ours[name].dtype == expected.dtype and ours[name].shape == expected.shape
        error = (ours[name] - expected).abs().max()
        assert error <= tolerance * max(0.01, expected.abs().max()), (name, error)


def assert_same_training(ours: dict, reference: dict, tolerance: float):
    for step, gradients in enumerate(reference["gradients"]):
        assert_close(ours["gradients"][step], gradients, tolerance)
    assert_close(ours["weights"], reference["weights"], tolerance)


def single_process(folder: Path, dtype: torch.dtype, model_class=CaitForImageClassification) -> dict:
    model = model_class.from_pretrained(folder, dtype=dtype)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    results = train(model)
    for name, weight in results["weights"].items():
        # What no output depends on: softmax ignores what is added to all scores of a row.
        if not name.endswith(("k_proj.bias", "proj_l_bias")):
            assert (weight - start[name]).abs().max() > 1e-5, name
    return results | {"after": logits(model)} if model_class is CaitForImageClassification else results


def test_data_parallel(folder, processes):
    """Also with gradients accumulated without synchronization, with activation checkpointing, and masked."""
    results = results_of("data_parallel", folder, processes)
    for dtype in DTYPES:
        reference = single_process(folder, dtype)
        assert_same_training(results[f"{dtype}"], reference, TOLERANCE[dtype])
    for variant in ("accumulated", "checkpointed"):
        assert_same_training(results[variant], reference, TOLERANCE[torch.float64])
    reference = single_process(folder / "masked", torch.float64, CaitForMaskedImageModeling)
    assert_same_training(results["masked"], reference, TOLERANCE[torch.float64])


def test_fully_sharded(folder, processes):
    """Each process holds half of every parameter; the model that is saved is whole and loads in one process.

    What the plan names is sharded by itself: gathered when it runs, not with the whole model.
    """
    results = results_of("fully_sharded", folder, processes)
    for dtype in DTYPES:
        model = CaitForImageClassification.from_pretrained(folder, dtype=dtype)
        for name, parameter in model.named_parameters():
            rows = -(-parameter.shape[0] // 2)  # of the first process, which contains the odd one
            assert results[f"{dtype}"]["shards"][name] == rows * parameter[0].numel(), name
        planned = (CaitLayer, CaitClassLayer)
        own = [name for name, module in model.named_modules() if isinstance(module, planned)] + ["cait.layernorm"]
        assert len(own) == 6 and set(results[f"{dtype}"]["own_shards"]) == {"", *own}
        reference = assert_same_as_single_process(results[f"{dtype}"], folder, dtype, "fully_sharded")
    assert_same_training(results["by module"], reference, TOLERANCE[torch.float64])


def test_tensor_parallel(folder, processes):
    """Each process holds half of the hidden channels of every MLP, and everything else whole."""
    results = results_of("tensor_parallel", folder, processes)
    for dtype in DTYPES:
        model = CaitForImageClassification.from_pretrained(folder, dtype=dtype)
        split = (".fc1.weight", ".fc1.bias", ".fc2.weight")
        expected = {name: p.numel() // 2 for name, p in model.named_parameters() if name.endswith(split)}
        expected |= {name: p.numel() for name, p in model.named_parameters() if name.endswith(".fc2.bias")}
        assert results[f"{dtype}"]["shards"] == expected and len(expected) == 4 * (3 + 2)
        assert_same_as_single_process(results[f"{dtype}"], folder, dtype, "tensor_parallel")


def assert_same_as_single_process(results: dict, folder: Path, dtype: torch.dtype, scenario: str) -> dict:
    """Logits before and after training, training itself, and the model that was saved; returns the reference."""
    reference = single_process(folder, dtype)
    assert_same_training(results, reference, TOLERANCE[dtype])
    before = logits(CaitForImageClassification.from_pretrained(folder, dtype=dtype))
    assert_close(
        {"before": results["before"], "after": results["after"]},
        {"before": before, "after": reference["after"]},
        TOLERANCE[dtype],
    )
    saved = folder / f"{scenario}-{dtype}"
    assert [file.name for file in saved.glob("*.safetensors")] == ["model.safetensors"]
    stored = load_file(saved / "model.safetensors")
    assert stored.keys() == results["weights"].keys()
    loaded = dict(CaitForImageClassification.from_pretrained(saved).named_parameters())
    for name, weight in results["weights"].items():
        assert torch.equal(stored[name], weight) and torch.equal(loaded[name], weight), name
    return reference


def test_trainer(folder, processes):
    """The Trainer of the scripts, started once for each process, as torchrun starts it."""
    results = results_of("trainer", folder, processes)
    saved = dict(CaitForImageClassification.from_pretrained(folder / "trainer").named_parameters())
    assert all(torch.equal(saved[name], weight) for name, weight in results["weights"].items())
    reference = trainer(folder, per_device_batch_size=4)
    assert (results["processes"], reference["processes"]) == (2, 1)
    assert_close(results["weights"], reference["weights"], TOLERANCE[torch.float32])
    assert results["losses"] == pytest.approx(reference["losses"], rel=1e-3)  # logged with four digits


def test_cpu_configuration_starts_two_processes(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
        "import sys; from accelerate import *; a = Accelerator(cpu=True);"
        "sys.stdout.write(f'{a.distributed_type} {a.num_processes}\\n')"  # at once: both write to one pipe
    )
    config = SCRIPTS / "accelerate_configs" / "cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, script]
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    assert sorted(finished.stdout.split("\n")) == ["", *2 * ["DistributedType.MULTI_CPU 2"]]


@pytest.mark.parametrize(
    "kind, processes, is_fsdp2, asked, messages",
    [
        ("NO", 1, False, None, ["One process on cpu."]),
        ("MULTI_CPU", 2, False, None, ["DDP of 2 processes on cpu."]),
        ("MULTI_CPU", 2, False, "FSDP", ["DDP of 2 processes on cpu.", "FSDP was asked for, but"]),
        ("FSDP", 2, True, "FSDP", ["FSDP2 of 2 processes on cpu."]),
        ("DEEPSPEED", 2, False, "DEEPSPEED", ["DeepSpeed of 2 processes on cpu."]),
    ],
)
def test_strategy_is_logged(kind, processes, is_fsdp2, asked, messages, caplog, monkeypatch):
    accelerator = SimpleNamespace(
        distributed_type=DistributedType(kind), num_processes=processes, is_fsdp2=is_fsdp2, is_main_process=True
    )
    accelerator.device = torch.device("cpu:0")
    for name in ("FSDP", "DEEPSPEED"):
        monkeypatch.setenv(f"ACCELERATE_USE_{name}", str(name == asked).lower())
    with caplog.at_level(logging.INFO, "cait_hf"):
        log_strategy(accelerator)
    assert len(caplog.messages) == len(messages)
    assert all(map(str.startswith, caplog.messages, messages))


def test_unused_parameters_are_found():
    """Without a step on real values, and nothing is changed."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"image_size": 32, "patch_size": 16}
    cait, vit = CaitForImageClassification(tiny_config()), ViTForImageClassification(ViTConfig(**sizes))
    dinov2 = Dinov2ForImageClassification(Dinov2Config(**sizes))
    assert [has_unused_parameters(model.train()) for model in (cait, vit, dinov2)] == [False, False, True]
    dinov2.dinov2.embeddings.mask_token.requires_grad_(False)
    assert not has_unused_parameters(dinov2)
    assert all(parameter.grad is None for parameter in cait.parameters())
