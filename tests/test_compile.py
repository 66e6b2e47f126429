# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`torch.compile`: one graph without breaks, results of the plain model, and no compilation that is not needed.

`fullgraph=True` raises at a break, and the stance "fail_on_recompile" where a compiled graph does not fit. The quick
tests compile to a graph that PyTorch runs as it stands ("aot_eager"), one of them and the slow ones to machine code
("inductor").
"""

import copy
import pickle
import shutil

import pytest
import torch
from random_weights import images, randomize_, tiny_config

from cait_hf import CaitForImageClassification


RECORDED = {"output_attentions": True, "output_hidden_states": True, "output_class_hidden_states": True}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def model() -> CaitForImageClassification:
    return randomize_(CaitForImageClassification(tiny_config(num_hidden_layers=1, num_class_attention_layers=1)))


def compiled(model, backend: str = "aot_eager", dynamic: bool | None = True):
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)


def no_compilation():
    return torch.compiler.set_stance("fail_on_recompile")


def loss_and_gradients(model, call, pixel_values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = call(pixel_values, labels=torch.arange(len(pixel_values)) % 5).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_logits(call, model, pixel_values: torch.Tensor):
    torch.testing.assert_close(call(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-5)


def check_training(call, model, pixel_values: torch.Tensor):
    expected_loss, expected = loss_and_gradients(model, model, pixel_values)
    loss, gradients = loss_and_gradients(model, call, pixel_values)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_evaluation_compiles_once_for_all_batch_sizes(model, attn_implementation):
    model.set_attn_implementation(attn_implementation)
    call = compiled(model)
    check_logits(call, model, images(2, 32))
    with no_compilation():
        for batch_size in (5, 3, 2, 7):
            check_logits(call, model, images(batch_size, 32))
        with pytest.raises(RuntimeError, match="recompile"):  # PyTorch makes another graph for a size of one
            call(images(1, 32))
    check_logits(call, model, images(1, 32))
    with no_compilation():
        for batch_size in (1, 6):
            check_logits(call, model, images(batch_size, 32))


@torch.no_grad()
def test_evaluation_without_asking_for_dynamic_sizes(model):
    """A marked batch axis compiles once; without a mark the second size is the last that compiles."""
    marked = images(2, 32)
    torch._dynamo.mark_dynamic(marked, 0)
    call = compiled(model, dynamic=None)
    call(marked)
    with no_compilation():
        check_logits(call, model, images(5, 32))

    torch.compiler.reset()
    call = compiled(model, dynamic=None)
    call(images(2, 32))
    with no_compilation():
        check_logits(call, model, images(2, 32, seed=3))
    call(images(5, 32))
    with no_compilation():
        for batch_size in (3, 2, 5, 7):
            check_logits(call, model, images(batch_size, 32))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_training_compiles_once_for_all_batch_sizes(model, attn_implementation):
    model.set_attn_implementation(attn_implementation)
    model.train()
    call = compiled(model)
    check_training(call, model, images(2, 32))
    with no_compilation():
        for batch_size in (5, 3, 2):
            check_training(call, model, images(batch_size, 32))


def test_random_parts_of_training_stay_random():
    random = {"drop_path_rate": 0.4, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config = tiny_config(num_hidden_layers=1, num_class_attention_layers=1, **random)
    model = randomize_(CaitForImageClassification(config)).train()
    call = compiled(model, dynamic=None)
    first = call(images(4, 32)).logits
    with no_compilation():
        assert not torch.allclose(call(images(4, 32)).logits, first)


def test_recorders_are_installed_by_the_first_call_that_records(model):
    """Under a lock, which cannot be traced. In the constructor they would cost the model its pickle."""
    x = images(2, 32)
    expected = model(x).logits
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x).logits, expected)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="lock"):
        compiled(model)(x, output_hidden_states=True)
    torch.compiler.reset()
    outputs = torch.compile(model, backend="aot_eager")(x, output_hidden_states=True)  # may break the graph
    assert len(outputs.hidden_states) == 2
    torch.testing.assert_close(copy.deepcopy(model)(x).logits, expected)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_recorded_outputs(model, training):
    model.train(training)
    model(images(1, 32), output_hidden_states=True)  # the plain call of CaitModel.forward's docstring
    call = compiled(model)

    def check(pixel_values: torch.Tensor):
        found, expected = call(pixel_values, **RECORDED), model(pixel_values, **RECORDED)
        counts = {"hidden_states": 2, "attentions": 1, "class_attentions": 1, "class_hidden_states": 1}
        for name, count in counts.items():
            assert len(found[name]) == count
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)

    check(images(2, 32))
    with no_compilation():
        check(images(5, 32))


@torch.no_grad()
def test_image_sizes_compile_once(model):
    model.config.interpolate_pos_encoding = True
    call = compiled(model)
    call(images(2, 48, 40))
    with no_compilation():
        for height, width in ((64, 24), (40, 72), (56, 40)):
            check_logits(call, model, images(3, height, width))


@pytest.mark.parametrize(
    "training",
    [pytest.param(False, id="evaluation"), pytest.param(True, id="training", marks=pytest.mark.slow)],
)
def test_machine_code(model, training):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    call = compiled(model.train(training), backend="inductor")
    check = check_training if training else check_logits
    with torch.set_grad_enabled(training):
        check(call, model, images(2, 32))
        with no_compilation():
            check(call, model, images(3, 32))
