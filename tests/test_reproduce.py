# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/reproduce`: the variants are what they are called, the scripts run from images to REPRODUCTION.md."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from test_scripts import SCRIPTS, load_scripts
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


pytest.importorskip("matplotlib", reason="the plots are matplotlib's")
variants, runner, report = load_scripts(SCRIPTS / "reproduce", "variants", "run", "report")
Variant, build, branch_ratios = variants.Variant, variants.build, variants.branch_ratios


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Digits in the place of clothes: what prepare_fashion_mnist.py writes, but small."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    scans = [Image.fromarray((scan * 15).astype(np.uint8)).resize((28, 28)) for scan in digits.images[:200]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for name, part in (("train", slice(0, 100)), ("validation", slice(100, 200))):
        rows = {"image": scans[part], "label": digits.target[part].tolist()}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def layers_of(model) -> torch.nn.ModuleList:
    return next(module for name, module in model.named_modules() if name.endswith("layers"))


def test_without_talking_heads_attention_is_plain(pixel_values):
    attention = layers_of(build(Variant("x", talking_heads=False)))[0].attention
    hidden_states = torch.randn(2, 16, variants.WIDTH)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    qkv = (projection(hidden_states).unflatten(-1, (4, -1)).transpose(1, 2) for projection in projections)
    plain = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(hidden_states)[0], attention.o_proj(plain))
    assert not attention.proj_w_weight.requires_grad and attention.q_proj.weight.requires_grad


@pytest.mark.parametrize(
    "scale, shape, value, trained", [(None, (32,), 1.0, False), (1e-4, (32,), 1e-4, True), ("scalar", (1,), 0.0, True)]
)
def test_residual_branches_are_what_they_are_called(scale, shape, value, trained):
    model = build(Variant("x", depth=2, layer_scale=scale))
    factors = [parameter for name, parameter in model.named_parameters() if name.endswith("lambda1")]
    assert len(factors) == 8  # of two patch layers and two class layers
    for factor in factors:
        assert factor.shape == shape and factor.requires_grad == trained
        assert torch.all(factor == value)


@pytest.mark.parametrize("where, joins_at", [("first", 0), ("late", 4)])
def test_class_token_among_the_patches(where, joins_at, pixel_values):
    model = build(Variant("x", depth=6, class_token=where)).eval()
    lengths = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    logits = model(pixel_values)
    assert lengths == [16] * joins_at + [17] * (6 - joins_at) and logits.shape == (3, 10)
    with torch.no_grad():  # patches matter to the class token
        assert (model(pixel_values.flip(-1)) - logits).abs().max() > 1e-4


def test_costs_are_alike():
    """The class stage costs what carrying the class token through all layers costs, within 5 %."""
    places = ("first", "late", "separate")
    costs = [runner.macs(build(Variant("x", class_token=where)), 28) for where in places]
    assert max(costs) < 1.05 * min(costs)


def test_heads_that_do_not_talk_cost_plain_attention():
    """The count of the identity matrices' products, by PyTorch's counter on two models of different depth."""
    silent = Variant("x", talking_heads=False, depth=2)
    model = build(silent)
    attention = layers_of(model)[0].attention
    hidden_states = torch.randn(1, 16, variants.WIDTH)
    with FlopCounterMode(display=False) as counter:
        attention(hidden_states)
    projections = 4 * 16 * 32 * 32
    products = 2 * 4 * 16 * 16 * 8  # of queries and keys, of weights and values: heads * tokens**2 * channels
    mixing = counter.get_total_flops() // 2 - projections - products
    assert runner.mixing_macs(silent, 28) == 2 * mixing > 0
    assert runner.mixing_macs(Variant("x"), 28) == 0


def test_drop_path_is_constant():
    modules = build(Variant("x", depth=3, drop_path=0.2)).modules()
    rates = [module.drop_prob for module in modules if type(module).__name__ == "CaitDropPath"]
    assert rates[:3] == 3 * [0.2] and set(rates[3:]) <= {0.0}


def test_images_of_a_training_have_its_size(pixel_values):
    model, sizes = build(Variant("x", depth=1, patch_size=4, stages=((20, 1.0),))), []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    runner.fit(model, 20, 2, pixel_values, torch.zeros(3, dtype=torch.long), seed=0)
    assert sizes == [(20, 20), (20, 20)]


def test_positions_are_resized_once_between_the_stages(pixel_values, monkeypatch):
    """The second part of the training has a position for each of its own 7 x 7 patches, as fine-tuning has."""
    seen = []

    def fit(model, size, steps, *args, **kwargs):
        positions = next(p for name, p in model.named_parameters() if "position" in name)
        seen.append((size, steps, positions.shape[1]))
        return [1.0] * steps

    monkeypatch.setattr(runner, "fit", fit)
    images = (pixel_values.repeat(64, 1, 1, 1), torch.zeros(192, dtype=torch.long))
    (variant,) = (v for v in runner.EXPERIMENTS["resolution"].variants if len(v.stages) == 2)
    experiment = runner.Experiment((variant,), images=192, epochs=4)
    result = runner.answer(experiment, variant, 0, images, images, "")
    assert seen == [(20, 9, 25), (28, 3, 49)] and len(result["losses"]) == 12


def test_learning_rate_is_the_variants(pixel_values, monkeypatch):
    compared = runner.EXPERIMENTS["learning_rates"].variants
    assert {variant.learning_rate for variant in compared} == {2e-3, 8e-3, 3.2e-2}
    assert len({variant.name for variant in compared}) == len(compared) == 27
    rates, step = [], torch.optim.AdamW.step

    def record(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    variant = Variant("x", depth=1, learning_rate=0.125)
    images = (pixel_values.repeat(64, 1, 1, 1), torch.zeros(192, dtype=torch.long))
    result = runner.answer(runner.Experiment((variant,), images=192, epochs=4), variant, 0, images, images, "")
    assert result["learning_rate"] == 0.125 and 0.12 < max(rates) <= 0.125  # the cosine has begun after one step


def test_distillation_is_half_labels_half_teacher():
    torch.manual_seed(0)
    labels, pixel_values = torch.arange(runner.BATCH) % 10, torch.randn(runner.BATCH, 1, 28, 28)
    model, teacher = build(Variant("x", depth=1)), variants.ConvolutionalTeacher().eval()
    symmetric = pixel_values + pixel_values.flip(-1)  # so that mirroring at random changes nothing
    with torch.no_grad():
        logits, best = model(symmetric), teacher(symmetric).argmax(-1)
        expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits, best)) / 2
    (loss,) = runner.fit(model, 28, 1, symmetric, labels, seed=0, teacher=teacher)
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    assert loss != pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-2)


def test_branch_ratios(pixel_values):
    model = build(Variant("x", depth=2, layer_scale=0.5)).eval()
    ratios = branch_ratios(model, pixel_values)
    with torch.no_grad():
        main, _ = model.model.cait.embeddings(pixel_values)
        layer = layers_of(model)[0]
        branch = 0.5 * layer.attention(layer.layernorm_before(main))[0]
        after = main + branch
        mlp = 0.5 * layer.mlp(layer.layernorm_after(after))
    assert ratios["attention"][0] == pytest.approx((branch.norm(dim=-1) / main.norm(dim=-1)).mean().item(), rel=1e-4)
    assert ratios["mlp"][0] == pytest.approx((mlp.norm(dim=-1) / after.norm(dim=-1)).mean().item(), rel=1e-4)
    assert [len(values) for values in ratios.values()] == [2, 2]
    assert branch_ratios(model, pixel_values) == ratios  # the hooks of the first call are gone


def test_numbers_of_the_report():
    assert report.mean_and_spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0" and report.mean_and_spread([0.5]) == "50.0"
    falling = [2.0] * 30 + [0.5] * 30
    assert report.first_step_below(falling, 1.0) == 44  # 14 losses of 0.5 in the last 20: 0.95
    assert report.first_step_below(falling, 0.4) is None
    assert report.first_step_below([0.5] * 3, 1.0) is None  # too few to tell


def test_from_images_to_the_report(data, tmp_path, monkeypatch):
    """One step for each model; fewer depths. A second call trains nothing again."""
    experiments = dict(runner.EXPERIMENTS)
    for name, depths in (("depth", (12, 36)), ("learning_rates", (24,))):
        variants = tuple(variant for variant in experiments[name].variants if variant.depth in depths)
        experiments[name] = runner.Experiment(variants)
    for module in (runner, report):
        monkeypatch.setattr(module, "EXPERIMENTS", experiments)
    monkeypatch.setattr(report, "DEPTHS", (12, 36))
    monkeypatch.setattr(report, "RATE_DEPTHS", (24,))
    flags = ["--data", data, "--output_dir", str(tmp_path / "results"), "--images", "64", "--seeds", "0"]
    runner.main(flags)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert len(files) == sum(len(experiment.variants) for experiment in runner.EXPERIMENTS.values())
    runner.main(flags)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")} == files

    report.main(["--results", str(tmp_path / "results"), "--output_dir", str(tmp_path)])
    text = (tmp_path / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert all(f"## {title}\n\n| " in text for _, title, *_ in report.SECTIONS.values())  # nobody has commented yet
    with pytest.raises(SystemExit, match=r"seed0.json has images 64, now it is 65: remove the file"):
        runner.main([*flags[:-3], "65", *flags[-2:]])

    (tmp_path / "results" / "comments.json").write_text(json.dumps({name: f"On {name}." for name in report.SECTIONS}))
    report.main(["--results", str(tmp_path / "results"), "--output_dir", str(tmp_path)])
    text = (tmp_path / "REPRODUCTION.md").read_text(encoding="utf-8")
    for name, (_, title, *_) in report.SECTIONS.items():
        assert f"## {title}\n\nOn {name}.\n\n| " in text and f"({report.PLOTS}/{name}.png)" in text
        with Image.open(tmp_path / report.PLOTS / f"{name}.png") as plot:
            assert min(plot.size) > 100


def test_reproduction_md_is_what_its_results_give(tmp_path):
    """The repository's file: every number in its tables comes from the JSON files, not from a hand."""
    report.main(["--output_dir", str(tmp_path)])
    assert (tmp_path / "REPRODUCTION.md").read_text() == (report.ROOT / "REPRODUCTION.md").read_text()
    for name in report.SECTIONS:
        assert (report.ROOT / report.PLOTS / f"{name}.png").is_file()


def test_teacher_against_labels_is_of_trainings_that_differ_in_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)

    def table(*rows) -> str | None:
        head = ["hidden_size", "seed", "teacher", "held-out accuracy"]
        (tmp_path / "results.json").write_text(json.dumps({"tried": [head, *rows] if rows else []}))
        return report.checkpoint_table()

    labels = [["96", 0, "no", 0.8], ["96", 1, "no", 0.9], ["128", 0, "no", 0.1]]
    assert table(*labels, ["96", 0, "yes", 0.75]).splitlines()[2:] == [
        "| labels | 2 | 85.0 ± 7.1 |",
        "| hard distillation | 1 | 75.0 |",
    ]
    assert table(*labels) is table() is table(*labels, ["64", 0, "yes", 0.75]) is None


def test_cost_of_changing_the_resolution():
    """Three quarters of the training at a cost of 1, the rest at 4, against all of it at 4."""
    stages = {"low": [[20, 1.0]], "high": [[28, 1.0]], "low then high": [[20, 0.75], [28, 0.25]]}
    results = {
        name: [{"variant": {"stages": parts}, "macs": 4 if name != "low" else 1, "accuracy": {"28": 0.5}}]
        for name, parts in stages.items()
    }
    table = report.resolution_table(results).splitlines()[2:]
    assert [line.split(" | ")[-1].strip(" |") for line in table] == ["0.25", "1.00", "0.44"]


def test_not_finite_ends_a_training_early(pixel_values):
    model = build(Variant("x", depth=1))
    pixel_values[:] = float("inf")
    losses = runner.fit(model, 28, 3, pixel_values, torch.zeros(3, dtype=torch.long), seed=0)
    assert len(losses) == 1 and not np.isfinite(losses[0])


@pytest.mark.parametrize(
    "script, flags, message",
    [
        (runner, "--data", "train.parquet does not exist"),
        (runner, "--images 100 --data", "--images is 100"),
        (report, "--results", "has no result of"),
    ],
)
def test_missing_data_and_results_end_with_an_error_message(script, flags, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        script.main([*flags.split(), str(tmp_path)])
