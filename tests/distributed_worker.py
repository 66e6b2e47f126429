# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""One of the processes that `test_distributed.py` starts: trains in parallel with the others and saves what came out.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python tests/distributed_worker.py FOLDER SCENARIO...

`FOLDER` contains the models to start from; each process leaves `SCENARIO-<rank>.pt` there. In the single process of
the tests, `train` and `trainer` make the reference: the same steps on whole batches.
"""

import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from random_weights import images
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments
from transformers.distributed import DistributedConfig

from cait_hf import CaitForImageClassification, CaitForMaskedImageModeling
from cait_hf.training.trainer import ImageClassificationTrainer


SECONDS = 300  # for all scenarios, on a busy machine
STEPS = 3
BATCH_SIZE = 8  # of all processes together
DTYPES = (torch.float32, torch.float64)


def whole_batch(step: int, dtype: torch.dtype, masked: bool) -> dict[str, torch.Tensor]:
    """Eight images with their labels or, of equally many patches each, with their masks."""
    batch = {"pixel_values": images(BATCH_SIZE, 32, seed=step).to(dtype)}
    if masked:
        order = torch.rand(BATCH_SIZE, 16, generator=torch.Generator().manual_seed(step)).argsort(dim=1)
        return batch | {"bool_masked_pos": order < 6}
    return batch | {"labels": torch.arange(BATCH_SIZE) * (step + 2) % 5}


def train(
    model: torch.nn.Module,
    parts: int = 1,
    part: int = 0,
    accumulate: int = 1,
    no_sync: type[AbstractContextManager] = nullcontext,
) -> dict:
    """Three steps of SGD with momentum on one of equal parts of every batch: losses, gradients, weights after them.

    Not Adam, which would blow the rounding of a zero gradient up to a whole step.
    """
    model.train()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses, gradients = [], []
    for step in range(STEPS):
        batch = whole_batch(step, plain.dtype, isinstance(plain, CaitForMaskedImageModeling))
        batch = {name: values.chunk(parts)[part] for name, values in batch.items()}
        micro_batches = [
            {name: values.chunk(accumulate)[i] for name, values in batch.items()} for i in range(accumulate)
        ]
        optimizer.zero_grad()
        losses.append(0.0)
        for micro_batch in micro_batches:
            with nullcontext() if micro_batch is micro_batches[-1] else no_sync():
                loss = model(**micro_batch).loss / accumulate
                loss.backward()
            losses[-1] += loss.item()
        gradients.append({name: whole(parameter.grad).clone() for name, parameter in plain.named_parameters()})
        optimizer.step()
    weights = {name: whole(parameter) for name, parameter in plain.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": weights}


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None, "a parameter has no gradient"
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of all eight images, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(whole_batch(0, model.dtype, masked=False)["pixel_values"]).logits


def data_parallel(folder: Path) -> dict:
    """DistributedDataParallel with its defaults, which refuse a parameter that gets no gradient."""
    rank, results = distributed.get_rank(), {}
    for dtype in DTYPES:
        model = DistributedDataParallel(CaitForImageClassification.from_pretrained(folder, dtype=dtype))
        results[f"{dtype}"] = train(model, parts=2, part=rank)
    model = DistributedDataParallel(CaitForImageClassification.from_pretrained(folder, dtype=dtype))
    results["accumulated"] = train(model, parts=2, part=rank, accumulate=2, no_sync=model.no_sync)
    model = CaitForImageClassification.from_pretrained(folder, dtype=dtype)
    model.gradient_checkpointing_enable()
    results["checkpointed"] = train(DistributedDataParallel(model), parts=2, part=rank)
    model = CaitForMaskedImageModeling.from_pretrained(folder / "masked", dtype=dtype)
    results["masked"] = train(DistributedDataParallel(model), parts=2, part=rank)
    return results


def fully_sharded(folder: Path) -> dict:
    """FSDP2 as Transformers applies it: `base_model_fsdp_plan`, loaded shard by shard, saved whole."""
    part = {"parts": 2, "part": distributed.get_rank()}
    results = sharded(folder, "fully_sharded", part, distributed_config=DistributedConfig(fsdp_size=2))
    return results | {"by module": sharded_by_module(folder, part)}


def sharded_by_module(folder: Path, part: dict) -> dict:
    """FSDP2 as Accelerate applies it (on accelerators only): the modules of `_no_split_modules`, then the rest."""
    model = CaitForImageClassification.from_pretrained(folder, dtype=torch.float64)
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module)
    fully_shard(model)
    return train(model, **part)


def tensor_parallel(folder: Path) -> dict:
    """The linears of the MLPs in two halves, `base_model_tp_plan`; every process sees the whole batch."""
    return sharded(folder, "tensor_parallel", {}, tp_plan="auto", tp_size=2)


def sharded(folder: Path, name: str, part: dict, **how) -> dict:
    results = {}
    for dtype in DTYPES:
        # A model of its own: after a forward pass alone FSDP2 has some parameters whole, and an optimizer that is made
        # then would hold those instead of the shards.
        before = logits(CaitForImageClassification.from_pretrained(folder, dtype=dtype, **how))
        model = CaitForImageClassification.from_pretrained(folder, dtype=dtype, **how)
        parameters = model.named_parameters()
        shards = {name: values.to_local().numel() for name, values in parameters if isinstance(values, DTensor)}
        own_shards = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        results[f"{dtype}"] = train(model, **part)
        results[f"{dtype}"] |= {"before": before, "after": logits(model), "shards": shards}
        results[f"{dtype}"] |= {"own_shards": own_shards}
        model.save_pretrained(folder / f"{name}-{dtype}")
    return results


def trainer(folder: Path, per_device_batch_size: int = 2) -> dict:
    """Two accumulated batches a step, of four images in all, in the shuffled order that every process knows."""
    model = CaitForImageClassification.from_pretrained(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=per_device_batch_size,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        use_cpu=True,
        ddp_find_unused_parameters=False,  # there are none
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    dataset = [{"pixel_values": image, "labels": label % 5} for label, image in enumerate(images(24, 32, seed=3))]
    own_trainer = ImageClassificationTrainer(model=model, args=arguments, train_dataset=dataset)
    own_trainer.train()
    own_trainer.save_model()
    return {
        "processes": arguments.world_size,
        "losses": [entry["loss"] for entry in own_trainer.state.log_history if "loss" in entry],
        "weights": {name: parameter.detach() for name, parameter in model.named_parameters()},
    }


SCENARIOS = {scenario.__name__: scenario for scenario in (data_parallel, trainer, fully_sharded, tensor_parallel)}


def main():
    folder, scenarios = Path(sys.argv[1]), sys.argv[2:]
    signal.alarm(SECONDS)  # nobody may be left who would end a process that waits for another
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for scenario in scenarios:
        results = SCENARIOS[scenario](folder)
        torch.save(results, folder / f"{scenario}-{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
