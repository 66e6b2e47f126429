# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The page of `cait-hf app`: what it computes, what it refuses, and how it behaves in a browser."""

import gc
import io
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from PIL import Image
from random_weights import randomize_, tiny_config
from transformers import pipeline

import cait_hf
import cait_hf_cli as cli
from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.app import inspection, page, space
from cait_hf.app.inspection import Inspection, best_predictions, examples, load_checkpoint, read_image
from cait_hf.app.panel import MEAN, panel
from cait_hf.app.session import Controls, Session, show, take_upload
from cait_hf.fashion_mnist import CHECKPOINT


ROOT = Path(__file__).resolve().parents[1]


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def controls(**changes) -> Controls:
    chosen = {"view": "class", "layer": 0, "head": MEAN, "side_by_side": False}
    chosen |= {"name": "fashion_mnist", "resolution": 0, "other_name": "fashion_mnist", "other_resolution": 56}
    return Controls(**{**chosen, **changes})


def write_checkpoint(folder: Path, card: str = "", processor: dict | None = None, **config) -> str:
    randomize_(CaitForImageClassification(tiny_config(**config))).save_pretrained(folder)
    CaitImageProcessorPil(**(processor or {"size": 32, "crop_size": 32})).save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


def caption(text: str) -> str:
    return text.partition("<figcaption>")[2].partition("<span>")[0]


# What a checkpoint says about an image


@pytest.mark.parametrize("image", [examples()[3][1], noise(90, 60)], ids=["example", "wide"])
def test_predictions_are_those_of_the_pipeline(image):
    classify = pipeline(
        "image-classification", CHECKPOINT, image_processor=CaitImageProcessorPil.from_pretrained(CHECKPOINT)
    )
    expected = classify(image, top_k=5)
    found = Inspection("fashion_mnist", image, 28).predictions
    assert [each.label for each in found] == [each["label"] for each in expected]
    assert [each.score for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)


def test_maps_of_every_view_and_resolution():
    seen = Inspection("fashion_mnist", noise(90, 60), 56)
    assert (seen.checkpoint.own_resolution, seen.checkpoint.largest_resolution) == (28, 256)
    assert seen.grid == (14, 14) and seen.pixel_values.shape == (1, 3, 56, 56)
    for view, layers, heads in (("class", 2, 4), ("patch", 4, 4), ("rollout", 5, 1)):
        maps = seen.maps(view, (3, 4))
        assert maps.shape == (layers, heads, 14, 14) and maps.min() >= 0
        assert seen.maps(view, (3, 4)) is maps  # kept
    assert not np.array_equal(seen.maps("patch", (3, 4)), seen.maps("patch", (4, 3)))


def test_scores_of_a_multi_label_model_are_independent():
    model = CaitForImageClassification(tiny_config(problem_type="multi_label_classification"))
    logits = torch.arange(float(model.config.num_labels))
    assert [each.score for each in best_predictions(model, logits, 2)] == logits.sigmoid().flip(0)[:2].tolist()


@pytest.mark.parametrize("resolution", [0, 30, 260, -4])
def test_resolutions_are_bounded(resolution):
    with pytest.raises(ValueError, match=f"is {resolution}, but for fashion_mnist .* of 4 from 4 to 256"):
        Inspection("fashion_mnist", noise(30, 30), resolution)


def test_shown_is_what_the_model_sees(tmp_path):
    """The processor crops 32 of 40 pixels: of a frame of a tenth of the image nothing is seen."""
    folder = write_checkpoint(tmp_path, processor={"size": 40, "crop_size": 32})
    image = Image.new("RGB", (400, 300), "white")
    image.paste("black", (30, 30, 370, 270))
    for resolution in (32, 64):
        seen = Inspection(folder, image, resolution)
        assert seen.pixel_values.shape[-1] == resolution and seen.pixel_values.std() < 0.5
        shown = np.asarray(seen.shown)
        assert shown.shape == (384, 640, 3) and shown[:, 128:-128].max() == 0 and shown[:, :20].min() == 255


@pytest.mark.parametrize(
    "config, processor, message",
    [
        ({"image_size": (32, 48)}, None, r"image_size of .* is \(32, 48\)"),
        ({"patch_size": (8, 4)}, None, r"patch_size of .* is \(8, 4\)"),
        ({"num_channels": 1}, None, "num_channels of .* is 1"),
        ({}, {"size": {"height": 32, "width": 32}, "crop_size": 32}, "image processor of .* squeezes"),
    ],
)
def test_checkpoints_that_the_page_cannot_show(config, processor, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(write_checkpoint(tmp_path, processor=processor, **config))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"GIF89a nothing", "not an image that can be read"),
        (encoded(noise(30, 30))[:900], "not an image that can be read"),
        (b"", "not an image"),
        (encoded(noise(30, 30), "EPS"), "must be JPEG, PNG, WEBP, GIF, BMP or TIFF"),
        (encoded(noise(30, 30), "ICO"), "must be JPEG, PNG, WEBP, GIF, BMP or TIFF"),
        (encoded(Image.new("1", (8000, 8000))), "8000 x 8000 pixels, but at most 50 million"),
        (encoded(Image.new("L", (1000, 10))), "1000 x 10 pixels, .* 50 times"),
    ],
    ids=["no image", "truncated", "empty", "EPS", "ICO", "too many pixels", "too long"],
)
def test_images_are_bounded(content, message, tmp_path):
    """Checked before any pixel is decoded, and the file is deleted in any case."""
    file = tmp_path / "upload.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        take_upload(file)
    assert not file.exists()


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "upload").write_bytes(bytes(inspection.LARGEST_UPLOAD + 1))
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(ValueError, match="16.0 MB, but at most 16 MB"):
        take_upload(tmp_path / "upload")
    assert not (tmp_path / "upload").exists()


@pytest.mark.parametrize(
    "mode, format",
    [("RGBA", "PNG"), ("I;16", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("1", "TIFF"), ("L", "BMP"), ("RGBA", "WEBP")],
)
def test_images_of_any_mode(mode, format, tmp_path):
    (tmp_path / "image").write_bytes(encoded(Image.new(mode, (40, 30)), format))
    image = read_image(take_upload(tmp_path / "image"))
    assert (image.mode, image.size) == ("RGB", (40, 30)) and not (tmp_path / "image").exists()


# What clicks and controls do


def test_click_shows_where_a_patch_looks():
    session, chosen = Session(), controls()
    session.click(chosen, 0, "place", [0.5, 0.1])
    assert chosen.view == "patch"
    shown = show(session, chosen)
    assert (shown.layer, shown.num_layers, shown.head, shown.num_heads) == (3, 4, MEAN, 4)
    assert "the patch in row 0, column 3 looks at: layer 3" in shown.panels[0]
    session.click(chosen, 0, "layer", 1)
    session.click(chosen, 0, "move", [1, -1])
    session.click(chosen, 0, "head", 2)
    assert "row 1, column 2 looks at: layer 1, head 2" in show(session, chosen).panels[0]
    for _ in range(9):
        session.click(chosen, 0, "move", [-1, 1])
    assert "row 0, column 6" in show(session, chosen).panels[0]  # not beyond the edge


def test_a_click_beside_the_part_that_the_model_sees_is_refused():
    session, chosen = Session(), controls()
    session.take(noise(90, 30))
    with pytest.raises(ValueError, match="only the bright square"):
        session.click(chosen, 0, "place", [0.2, 0.5])
    assert chosen.view == "class"
    session.click(chosen, 0, "place", [0.35, 0.5])
    assert "row 3, column 0" in show(session, chosen).panels[0]


def test_two_panels_show_the_same_place_in_their_grids():
    session, chosen = Session(), controls(side_by_side=True)
    session.click(chosen, 1, "place", [0.99, 0.01])
    left, right = show(session, chosen).panels
    assert "row 0, column 6" in left and "7 × 7 patches" in left
    assert "row 0, column 13" in right and "<b>196 tokens</b>" in right
    assert len(show(session, controls()).panels) == 1


def test_controls_and_overlays_of_models_that_differ_agree(two_heads):
    """A model that lacks the chosen head shows the mean; so does the control, if no other model has that head."""
    session, chosen = Session(), controls(side_by_side=True, other_name=two_heads, other_resolution=32, head=3)
    for view, layer in (("class", 1), ("patch", 3)):
        chosen.view, chosen.layer = view, layer
        shown = show(session, chosen)
        assert (shown.head, shown.num_heads, shown.layer) == (3, 4, layer)
        assert "head 3" in caption(shown.panels[0]) and "mean of its heads" in caption(shown.panels[1])
        alone = show(session, controls(view=view, head=3, name=two_heads, resolution=32))
        assert (alone.head, alone.num_heads) == (MEAN, 2) and "mean of its heads" in caption(alone.panels[0])
        assert show(session, controls(view=view, head=1, name=two_heads, resolution=32)).head == 1


def test_nothing_is_computed_twice(monkeypatch):
    session, chosen = Session(), controls(side_by_side=True)
    first = show(session, chosen)
    monkeypatch.setattr(Inspection, "__init__", None)
    chosen.look("rollout")
    assert show(session, chosen).inspections == first.inspections
    chosen.resolution = 56
    with pytest.raises(TypeError):
        show(session, chosen)


def test_an_open_page_keeps_no_model(tmp_path):
    """It keeps its maps, and loads the model again to compute others."""
    folders = [write_checkpoint(tmp_path / str(index)) for index in range(3)]
    session, chosen = Session(), controls(name=folders[0])
    chosen.resolution = show(session, chosen).inspections[0].resolution
    session.click(chosen, 0, "place", [0.5, 0.5])
    shown = show(session, chosen)
    model = weakref.ref(load_checkpoint(folders[0])[1])
    for other in folders[1:]:
        load_checkpoint(other)
    gc.collect()
    assert model() is None
    loaded = load_checkpoint.cache_info().misses
    assert show(session, chosen).panels == shown.panels and load_checkpoint.cache_info().misses == loaded
    chosen.look("rollout")
    assert "rollout back to the embeddings" in show(session, chosen).panels[0]
    assert load_checkpoint.cache_info().misses == loaded + 1


def test_every_view_names_what_it_shows():
    seen = Inspection("fashion_mnist", noise(90, 60), 28)
    texts = {view: panel(seen, view, 99, 99, (2, 3)) for view in ("class", "patch", "rollout")}
    assert "class layer 1, mean of its heads" in texts["class"] and texts["class"].count("data-head=") == 5
    assert "layer 3, mean of its heads" in texts["patch"] and texts["patch"].count("data-layer=") == 4
    assert "after 4 layers" in texts["rollout"] and texts["rollout"].count("data-layer=") == 5
    assert "back to the embeddings" in panel(seen, "rollout", 0, 0, (2, 3))
    for text in texts.values():
        assert "1,205,546 parameters" in text and "license: apache-2.0" in text and "A small CaiT" in text
        assert len(re.findall("<li>", text)) == 5 and text.count('aria-pressed="true"') == 1
    outlined, other = (panel(seen, "patch", 0, 0, patch).partition("</figure>")[0] for patch in ((2, 3), (2, 4)))
    assert outlined != other


def test_names_of_others_are_text(tmp_path):
    card = "---\nlicense: <b>mine</b>\n---\n<script>card()</script>"
    folder = write_checkpoint(tmp_path, card, num_labels=2, id2label={0: "<script>label()</script>", 1: "b"})
    text = panel(Inspection(folder, noise(32, 32), 32), "class", 0, 0, (0, 0))
    assert "<script>" not in text and "<b>mine" not in text
    assert "&lt;script&gt;label()" in text and "&lt;script&gt;card()" in text


def test_checkpoints_of_the_hub_link_their_card(hub, repo_id, tmp_path):
    write_checkpoint(tmp_path, "---\nlicense: mit\n---\n# Card")
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=tmp_path)
    seen = Inspection(repo_id, noise(32, 32), 32)
    checkpoint = seen.checkpoint
    assert (checkpoint.license, checkpoint.card, checkpoint.url) == ("mit", None, f"https://huggingface.co/{repo_id}")
    text = panel(seen, "class", 0, 0, (0, 0))
    assert f'href="https://huggingface.co/{repo_id}"' in text and "license: mit" in text


def test_a_checkpoint_without_a_card(tmp_path):
    folder = write_checkpoint(tmp_path)
    (tmp_path / "README.md").unlink()
    text = panel(Inspection(folder, noise(32, 32), 32), "class", 0, 0, (0, 0))
    assert "license: not stated" in text and "no model card" in text


# As a Space


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_space_imports_the_package(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "space"
    assert run("app", "fashion_mnist", "XXS24_224", "--space", "me/cait", "--output_dir", folder) == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        ".cait-hf.json",
        "README.md",
        "app.py",
        "requirements.txt",
    ]
    matter = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (matter["sdk"], matter["app_file"], matter["license"]) == ("gradio", "app.py", "apache-2.0")
    assert matter["models"] == ["timm/cait_xxs24_224.fb_dist_in1k"]
    assert (folder / "requirements.txt").read_text() == f"cait-hf[app]=={cait_hf.__version__}\n"
    started = []
    monkeypatch.setattr("cait_hf.app.launch", started.append)
    exec((folder / "app.py").read_text(), {})
    assert started == [["fashion_mnist", "XXS24_224"]]
    assert run("app", "--space", "me/cait", "--output_dir", folder) == 1  # not empty
    assert "--overwrite" in capsys.readouterr().err
    assert run("app", "--space", "me/cait", "--output_dir", folder, "--overwrite") == 0


def test_space_states_the_locked_gradio():
    locked = (ROOT / "requirements" / "app.txt").read_text()
    assert f"\ngradio=={space.GRADIO}\n" in locked


def test_push_of_a_space(hub, repo_id, tmp_path, capsys):
    assert run("app", "--space", repo_id, "--push") == 0
    printed = capsys.readouterr().out
    assert f"Pushed: {hub.url}/{repo_id}/commit/" in printed
    assert f"installs cait-hf[app]=={cait_hf.__version__} from the package index" in printed
    assert hub.count("POST /api/spaces/.*/commit/main") == 1
    assert (
        b"launch([" in hub.read(repo_id, "app.py")
        and ".cait-hf.json" not in hub.repositories[repo_id].branches["main"].files
    )
    assert run("app", "--space", repo_id, "--push", "--output_dir", tmp_path / "space") == 0
    assert hub.count("POST /api/spaces/.*/commit/main") == 1  # nothing has changed


def test_push_that_fails(hub, repo_id, capsys):
    hub.fail_next("POST .*/commit/", 403)
    assert run("app", "--space", repo_id, "--push") == 1
    assert f"could not be pushed to {repo_id}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--push", "--push is True, but it has a meaning with --space only"),
        ("--output_dir space", "--output_dir is space, but it has a meaning with --space"),
        ("--private", "--private is True"),
        ("--space me/cait", "--space needs --output_dir, --push, or both"),
        ("--space me/cait --output_dir space --port 80", "--port is 80, but it has a meaning without --space"),
        ("--space cait --output_dir space", "--space is cait, but it must be OWNER/NAME"),
        ("folder --space me/cait --output_dir space", "MODEL is folder, but a Space needs a repository"),
        ("no-such-name --space me/cait --output_dir space", "MODEL is no-such-name, but a Space needs"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert run("app", *flags.split()) == 1
    assert message in capsys.readouterr().err
    assert not Path("space").exists()


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("app") == 1
    assert 'pip install "cait-hf[app]"' in capsys.readouterr().err


# In a browser


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """Folder of a checkpoint with two heads: that of the package has four."""
    return write_checkpoint(tmp_path_factory.mktemp("two_heads"), num_attention_heads=2)


@pytest.fixture(scope="module")
def served(two_heads):
    """(page, its address), served by this process: it may reach the loopback interface only."""
    pytest.importorskip("gradio", reason="the page needs Gradio")
    inspection.load_checkpoint.cache_clear()
    with page.page(["fashion_mnist", two_heads, "no-such-folder"]) as blocks:
        _, url, _ = blocks.launch(**page.launch_options(), prevent_thread_lock=True)
        yield blocks, url
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert [file for file in folder.rglob("*") if file.is_file()] == []  # no upload, no result
        blocks.close(verbose=False)
    assert not folder.exists()


@pytest.fixture
def address(served):
    return served[1]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """The page, opened. Whatever it asks for elsewhere, and every error in its console, fails the test."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(20_000)
    elsewhere, errors = [], []
    own = (address, "data:", "blob:")
    tab.on("request", lambda request: None if request.url.startswith(own) else elsewhere.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(address)
    tab.wait_for_selector(".cait-image img")
    yield tab
    tab.close()
    assert (elsewhere, errors) == ([], [])


def overlay(tab) -> str:
    return tab.get_attribute(".cait-image img", "src")


def labels(tab) -> list[str]:
    return tab.locator(".cait-bars li > span").all_inner_texts()


def wait_for(tab, text: str) -> None:
    tab.locator(".cait-panel figcaption", has_text=text).first.wait_for()


def choose_checkpoint(tab, name: str) -> None:
    tab.get_by_label("Checkpoint", exact=True).first.click()
    tab.get_by_role("option", name=name).click()


def test_page_shows_an_upload_and_where_its_patches_look(opened, tmp_path):
    assert labels(opened)[0] == "ankle boot"
    (label, image), before = examples()[2], overlay(opened)
    assert label == "trouser"
    image.resize((280, 280)).save(tmp_path / "upload.png")
    opened.set_input_files("#upload input[type=file]", tmp_path / "upload.png")
    opened.locator(".cait-bars li:first-child", has_text="trouser").wait_for()
    expected = Inspection("fashion_mnist", Image.open(tmp_path / "upload.png"), 28).predictions
    assert labels(opened) == [each.label for each in expected]
    uploaded = overlay(opened)
    assert uploaded != before

    box = opened.locator(".cait-image img").bounding_box()
    opened.mouse.click(box["x"] + box["width"] * 3.5 / 7, box["y"] + box["height"] * 1.5 / 7)
    wait_for(opened, "row 1, column 3 looks at: layer 3")
    clicked = overlay(opened)
    assert clicked != uploaded
    opened.locator("button[data-layer='0']").click()
    wait_for(opened, "looks at: layer 0")
    opened.locator(".cait-image").press("ArrowDown")
    wait_for(opened, "row 2, column 3 looks at: layer 0")
    opened.keyboard.press("ArrowRight")  # the image has kept the focus
    wait_for(opened, "row 2, column 4 looks at: layer 0")
    assert len({overlay(opened), clicked, uploaded}) == 3

    opened.get_by_label("Rollout").check()
    wait_for(opened, "back to the embeddings")
    opened.get_by_label("Class token").check()
    wait_for(opened, "class layer 1")
    opened.locator("button[data-head='2']").click()
    wait_for(opened, "class layer 1, head 2")


def test_page_says_what_is_wrong_and_goes_on(opened, tmp_path):
    (tmp_path / "wrong.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    before = overlay(opened)
    opened.set_input_files("#upload input[type=file]", tmp_path / "wrong.png")
    opened.locator("[role=alert]", has_text="not an image that can be read").wait_for()
    assert overlay(opened) == before
    opened.locator("button[data-example='1']").click()
    opened.locator(".cait-bars li:first-child", has_text="pullover").wait_for()
    assert opened.locator("[role=alert]").count() == 0
    choose_checkpoint(opened, "no-such-folder")
    opened.locator("[role=alert]", has_text="source is no-such-folder").wait_for()
    assert labels(opened)[0] == "pullover"


def test_page_offers_and_chooses_only_heads_that_there_are(opened, two_heads):
    opened.locator("button[data-head='3']").click()
    wait_for(opened, "class layer 1, head 3")
    assert opened.get_by_label("Head").input_value() == "head 3"
    choose_checkpoint(opened, two_heads)
    wait_for(opened, "class layer 1, mean of its heads")
    opened.wait_for_function("document.querySelector('#head input').value === 'mean of all'")
    opened.get_by_label("Head").click()
    options = opened.get_by_role("option").all_inner_texts()
    assert [each.removeprefix("✓").strip() for each in options] == ["mean of all", "head 0", "head 1"]


def test_page_takes_a_pasted_image(opened):
    opened.evaluate(
        """async (url) => {
            const clipboardData = new DataTransfer();
            const blob = await (await fetch(url)).blob();
            clipboardData.items.add(new File([blob], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        opened.locator(".cait-examples img").nth(2).get_attribute("src"),
    )
    opened.locator(".cait-bars li:first-child", has_text="trouser").wait_for()


def test_page_on_a_phone_with_two_checkpoints_and_more_tokens(opened):
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.get_by_label("Two checkpoints side by side").check()
    opened.locator(".cait-panel").nth(1).wait_for()
    opened.get_by_label("number input for Resolution").last.fill("112")
    opened.locator(".cait-tokens", has_text="784 tokens").wait_for()
    assert "49 tokens" in opened.locator(".cait-tokens").first.inner_text()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.locator(".cait-image").first.scroll_into_view_if_needed()
    scrolled = opened.evaluate("window.scrollY")
    opened.locator(".cait-image").first.click()
    wait_for(opened, "row 3, column 3 looks at")
    assert opened.evaluate("window.scrollY") == scrolled > 0  # the page stays where it is


def test_server_refuses_large_files_and_listens_on_this_machine_only(address):
    httpx = pytest.importorskip("httpx", reason="of Gradio")
    assert address.startswith("http://127.0.0.1:")
    large = bytes(inspection.LARGEST_UPLOAD + 1)
    assert httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", large)}).status_code == 413
    assert httpx.get(f"{address}gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_command_serves_until_it_is_ended(tmp_path):
    pytest.importorskip("gradio", reason="the page needs Gradio")
    program = "import sys; from cait_hf_cli import main; sys.exit(main())"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_SERVER_NAME": "0.0.0.0"}  # not what the flag says
    command = [sys.executable, "-c", program, "app", "fashion_mnist"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = child.stdout.readline()
    assert re.fullmatch(r"The page is at http://127\.0\.0\.1:\d+/ until Ctrl-C\.\n", line), child.communicate()
    assert list(tmp_path.glob("cait-hf-app-*"))
    child.terminate()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    assert list(tmp_path.glob("cait-hf-app-*")) == []


@pytest.mark.parametrize(
    "what, place",
    [("a file of this machine", 0), ("a URL", 0), ("a URL", 3), ("a folder", 0), ("a model that is not offered", 6)],
)
def test_server_refuses_what_no_browser_sends(what, place, served, tmp_path, monkeypatch):
    """Files other than uploads also in the place of a number. No URL is asked for, nothing is read or deleted."""
    httpx = pytest.importorskip("httpx", reason="of Gradio")
    blocks, address = served
    fetched = []
    monkeypatch.setattr(
        "gradio.processing_utils.async_ssrf_protected_download", lambda *call, **_: fetched.append(call)
    )
    file = tmp_path / "mine.png"
    file.write_bytes(encoded(noise(30, 30)))
    paths = {
        "a file of this machine": file,
        "a URL": "https://host/image.png",
        "a folder": os.environ["GRADIO_TEMP_DIR"],
    }
    data = [None, None, "class", 1, MEAN, False, "fashion_mnist", 28, "fashion_mnist", 28]
    if what in paths:
        data[place] = {"path": str(paths[what]), "meta": {"_type": "gradio.FileData"}}
    else:
        data[place] = write_checkpoint(tmp_path / "model")
    upload = next(block for block in blocks.blocks.values() if block.elem_id == "upload")
    (index,) = (index for index, fn in blocks.fns.items() if (upload._id, "input") in fn.targets)
    session = f"{what} at {place}"
    request = {"data": data, "fn_index": index, "session_hash": session}
    assert httpx.post(f"{address}gradio_api/queue/join", json=request).status_code == 200
    answer = httpx.get(f"{address}gradio_api/queue/data", params={"session_hash": session}, timeout=20).text
    assert '"success":false' in answer and "cait-panel" not in answer
    assert fetched == [] and file.exists()
    kept = set().union(*blocks.temp_file_sets)
    assert not any(Path(each).is_dir() for each in kept)  # at which Gradio's deleting of old uploads would end
