# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Two processes train as one does on both their images: data parallel, fully sharded (FSDP2), tensor parallel.

The processes are real ones and talk over the loopback interface (gloo, CPU). What they do is in
`distributed_worker.py`, whose `train` makes the reference here, in a single process on whole batches.
"""

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import warm_process
from distributed_worker import DTYPES, SCENARIOS, SECONDS, logits, train, trainer
from random_weights import randomize_, tiny_config
from safetensors.torch import load_file
from torch import distributed

from cait_hf import CaitForImageClassification, CaitForMaskedImageModeling
from cait_hf.modeling_cait import CaitClassLayer, CaitLayer


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
