# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The operator talking_heads_attention against the plain formulas in float64, and where the model uses it."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import cait_hf
from cait_hf import CaitForImageClassification, CaitModel, attention_blocked
from cait_hf.attention_cait import talking_heads_attention_forward
from cait_hf.attention_fused import fused_talking_heads_attention_forward


NAMES = ("query", "key", "value", "proj_l_weight", "proj_l_bias", "proj_w_weight", "proj_w_bias")


def draw(batch_size=2, heads=4, patches=17, head_dim=8, dtype=torch.float64, strides="patches") -> list[torch.Tensor]:
    """Leaf tensors in the order of NAMES; scores of a few units, talking-heads projections far from the identity."""
    generator = torch.Generator().manual_seed(batch_size * 1000 + heads * 100 + patches)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if strides == "patches":  # as the linear layers leave them
        states = [noise(batch_size, patches, heads, head_dim).transpose(1, 2) for _ in range(3)]
    elif strides == "contiguous":
        states = [noise(batch_size, heads, patches, head_dim) for _ in range(3)]
    else:  # nothing is next to its neighbor in memory
        states = [noise(head_dim, 2 * patches, heads, batch_size).permute(3, 2, 1, 0)[:, :, ::2] for _ in range(3)]
    projections = [noise(heads, heads), noise(heads), noise(heads, heads), noise(heads)]
    return [tensor.detach().requires_grad_() for tensor in (*states, *projections)]


def results(function, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The output and the gradient of a fixed random sum of it with respect to each input, by name."""
    output, _ = function(*tensors, scaling=tensors[0].shape[-1] ** -0.5)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    gradients = torch.autograd.grad(output, tensors, direction)
    return {"output": output.detach(), **dict(zip(NAMES, gradients, strict=True))}


def relative_errors(actual: dict[str, torch.Tensor], tensors: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference from the plain formulas in float64, relative to the largest value of each tensor."""
    exact = results(talking_heads_attention_forward, [tensor.detach().double().requires_grad_() for tensor in tensors])
    del exact["proj_l_bias"]  # zero but for rounding
    return {
        name: ((actual[name] - value).abs().max() / value.abs().max()).item() if value.numel() else 0.0
        for name, value in exact.items()
    }


@pytest.mark.parametrize("strides", ["patches", "contiguous", "scattered"])
@pytest.mark.parametrize(
    "shape", [(1, 4, 1, 8), (2, 4, 17, 48), (7, 3, 17, 5), (1, 8, 196, 48), (3, 4, 196, 48), (1, 6, 577, 16)]
)
def test_float32_is_exact_to_rounding(shape, strides):
    tensors = draw(*shape, dtype=torch.float32, strides=strides)
    actual = results(fused_talking_heads_attention_forward, tensors)
    # Sums of N rounded terms err by about sqrt(N) roundings.
    errors = relative_errors(actual, tensors)
    assert max(errors.values()) <= 1e-6 * math.sqrt(shape[2]), errors
    assert actual["proj_l_bias"].abs().max() == 0


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_half_precision_rounds_only_its_results(dtype, tolerance):
    tensors = draw(2, 4, 196, 48, dtype=dtype)
    actual = results(fused_talking_heads_attention_forward, tensors)
    assert all(value.dtype == dtype for value in actual.values())
    errors = relative_errors(actual, tensors)  # half a unit in the last place of the result, doubled
    assert max(errors.values()) <= tolerance, errors


# One number: a row of one image. 4 * 17 * 5: parts of an image, the last smaller. 4 * 17 * 17 * 2: two images.
@pytest.mark.parametrize("block_numbers", [1, 4 * 17 * 5, 4 * 17 * 17, 4 * 17 * 17 * 2, 2**20])
@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_every_way_to_cut_blocks_gives_the_same(monkeypatch, batch_size, block_numbers):
    monkeypatch.setattr(attention_blocked, "BLOCK_NUMBERS", block_numbers)
    tensors = draw(batch_size)
    actual = results(fused_talking_heads_attention_forward, tensors)
    errors = relative_errors(actual, tensors)
    assert max(errors.values()) <= 1e-13, errors


@pytest.mark.parametrize("block_numbers", [1, 100, 4 * 17 * 5, 4 * 17 * 17 * 2, 2**20])
def test_blocks_cover_every_row_once_and_stay_within_their_size(monkeypatch, block_numbers):
    monkeypatch.setattr(attention_blocked, "BLOCK_NUMBERS", block_numbers)
    seen = torch.zeros(5, 17)
    for block, rows, (buffer,) in attention_blocked._blocks(torch.zeros(5, 4, 17, 8), buffers=1):
        seen[block, rows] += 1
        assert buffer.shape == (len(range(5)[block]), 4, len(range(17)[rows]), 17)
        assert buffer.numel() <= max(block_numbers, 4 * 17)
    assert (seen == 1).all()


def test_gradcheck():
    tensors = draw(2, 3, 5, 4)
    assert torch.autograd.gradcheck(
        lambda *tensors: fused_talking_heads_attention_forward(*tensors, scaling=0.7)[0], tensors
    )


@pytest.mark.parametrize("frozen", [(), ("proj_l_weight", "proj_w_bias")])
def test_second_derivatives(frozen):
    tensors = draw(1, 2, 4, 3)
    for tensor, name in zip(tensors, NAMES, strict=True):
        tensor.requires_grad_(name not in frozen)
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    second = []
    for function in (fused_talking_heads_attention_forward, talking_heads_attention_forward):
        output, _ = function(*tensors, scaling=0.7)
        gradients = torch.autograd.grad(output.square().sum(), trained, create_graph=True)
        second.append(torch.autograd.grad(sum(x.square().sum() for x in gradients), trained))
    for actual, expected in zip(*second, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# The native library, where there is one, takes float32 and heads of 16 channels; the other case is for the blocks.
@pytest.mark.parametrize("head_dim, dtype", [(4, torch.float64), (16, torch.float32)])
def test_operator_is_registered_as_pytorch_wants_it(head_dim, dtype):
    tensors = draw(2, 3, 5, head_dim, dtype)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.cait_hf.talking_heads_attention.default, (*tensors, 0.7), test_utils=tests)
    query, key, value, proj_l_weight, _, proj_w_weight, proj_w_bias = (tensor.detach() for tensor in tensors)
    inputs = (query, key, value, proj_l_weight, proj_w_weight, proj_w_bias, 0.7)
    grad_output = torch.randn(2, 5, 3, head_dim, dtype=dtype)
    torch.library.opcheck(
        torch.ops.cait_hf.talking_heads_attention_backward.default,
        (grad_output, *inputs),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_autocast_reaches_the_inputs_only():
    tensors = [tensor.detach() for tensor in draw(2, 4, 17, 8, dtype=torch.bfloat16)]
    expected, _ = fused_talking_heads_attention_forward(*tensors, scaling=0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = fused_talking_heads_attention_forward(*tensors, scaling=0.7)
    assert torch.equal(actual, expected)


def test_nothing_of_the_size_of_a_map_is_kept_for_the_backward_pass():
    tensors = draw(1, 4, 64, 8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()), lambda _: None):
        fused_talking_heads_attention_forward(*tensors, scaling=0.7)
        assert sizes and max(sizes) == 4 * 64 * 8
        sizes.clear()
        talking_heads_attention_forward(*tensors, scaling=0.7)
        assert max(sizes) == 4 * 64 * 64


def test_a_second_copy_of_the_file_shares_the_operator():
    """Remote code is such a copy; PyTorch refuses to register an operator twice."""
    path = Path(cait_hf.__file__).with_name("attention_fused.py")
    spec = importlib.util.spec_from_file_location("cait_hf.attention_fused_copy", path)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copy
    try:
        spec.loader.exec_module(copy)
    finally:
        del sys.modules[spec.name]
    tensors = draw()
    actual, _ = copy.fused_talking_heads_attention_forward(*tensors, scaling=0.7)
    expected, _ = fused_talking_heads_attention_forward(*tensors, scaling=0.7)
    assert torch.equal(actual, expected)


class Operators(TorchDispatchMode):
    """Counts the calls of our operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cait_hf":
            self.calls.append(func._opname)
        return func(*args, **(kwargs or {}))


def calls(model, **kwargs) -> list[str]:
    with Operators() as operators:
        output = model(images(2, 32), **kwargs)
        if output[0].requires_grad:
            output[0].sum().backward()
    return operators.calls


FORWARD, BACKWARD = "talking_heads_attention", "talking_heads_attention_backward"


def test_the_default_is_the_operator_in_evaluation_and_training():
    model = randomize_(CaitForImageClassification(tiny_config()))
    assert model.config._attn_implementation == "sdpa"
    assert calls(model) == [FORWARD] * 3 + [BACKWARD] * 3
    assert calls(model.train()) == [FORWARD] * 3 + [BACKWARD] * 3
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert calls(model) == [FORWARD] * 3


def test_the_plain_formulas_serve_what_the_operator_cannot():
    model = randomize_(CaitForImageClassification(tiny_config(attention_probs_dropout_prob=0.1)))
    assert calls(model.train()) == []
    assert calls(model.eval()) == [FORWARD] * 3 + [BACKWARD] * 3
    assert calls(model, output_attentions=True) == []
    model.set_attn_implementation("eager")
    assert calls(model) == []


def test_operator_and_plain_formulas_give_the_same_model():
    model = randomize_(CaitModel(tiny_config())).double()
    pixel_values = images(3, 32).double()
    fast = model(pixel_values).last_hidden_state
    model.set_attn_implementation("eager")
    plain = model(pixel_values).last_hidden_state
    assert ((fast - plain).abs().max() / plain.abs().max()).item() <= 1e-13


def test_export_records_the_plain_formulas():
    model = randomize_(CaitForImageClassification(tiny_config()))
    program = torch.export.export(model, (), {"pixel_values": images(2, 32)}, strict=False)
    assert not any("cait_hf" in str(node.target) for node in program.graph.nodes)
    difference = program.module()(pixel_values=images(2, 32)).logits - model(images(2, 32)).logits
    assert difference.abs().max() <= 1e-5


def forward_mode(function, x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def gradients_of_each_image(model, x: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    loss = grad(lambda parameters, image: functional_call(model, parameters, image[None]).logits.square().sum())
    return vmap(loss, in_dims=(None, 0))(parameters, x)


# name -> function of the model, its logits as a function of images, and images
TRANSFORMS = {
    "grad": lambda model, logits, x: grad(lambda x: logits(x).sum())(x),
    "grad of grad": lambda model, logits, x: grad(lambda x: grad(lambda x: logits(x).sum())(x).square().sum())(x),
    "hessian": lambda model, logits, x: hessian(lambda factor: logits(factor * x).sum())(x.new_ones(2, 1, 1, 1)),
    "jacrev": lambda model, logits, x: jacrev(logits)(x),
    "jacfwd": lambda model, logits, x: jacfwd(lambda factor: logits(factor * x))(x.new_ones(2, 1, 1, 1)),
    "jvp": lambda model, logits, x: jvp(logits, (x,), (torch.ones_like(x),))[1],
    "forward mode": lambda model, logits, x: forward_mode(logits, x),
    "vmap": lambda model, logits, x: vmap(lambda image: logits(image[None])[0])(x),
    "vmap of grad": lambda model, logits, x: gradients_of_each_image(model, x),
    "compiled grad": lambda model, logits, x: torch.compile(
        grad(lambda x: logits(x).sum()), backend="eager", fullgraph=True
    )(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func_take_the_plain_formulas(name):
    torch.compiler.reset()
    config = tiny_config(num_hidden_layers=1, num_class_attention_layers=1)
    model = randomize_(CaitForImageClassification(config)).double()
    found = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        found.append(TRANSFORMS[name](model, lambda x: model(x).logits, images(2, 32).double()))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_compile_keeps_the_operator_as_one_node(training):
    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    model = randomize_(CaitForImageClassification(tiny_config())).train(training)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    logits = compiled(pixel_values=images(2, 32)).logits
    assert (logits - model(images(2, 32)).logits).abs().max() <= 1e-6
    assert sum("talking_heads_attention" in target for target in targets) == 3
