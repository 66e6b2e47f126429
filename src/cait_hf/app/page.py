# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The page of `cait-hf app`, in Gradio, which no other file imports.

Nothing leaves the machine: no telemetry, no share link, no font or script from elsewhere. An uploaded file is deleted
as soon as it is read, or within ten minutes; its bytes stay in memory for an hour after the last use of the page. All
computation goes through one queue of limited length, one request at a time.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints import CHECKPOINTS, FASHION_MNIST
from ..command_line import one_line
from .inspection import LARGEST_UPLOAD, examples
from .panel import MEAN, example_buttons, message
from .session import LAST, VIEWS, Controls, Session, show, take_upload


logger = logging.getLogger(__name__)

MODELS = (FASHION_MNIST, *(checkpoint.official_name for checkpoint in CHECKPOINTS))
QUEUE_LENGTH = 16
SESSIONS = 32  # each with an image in memory
SESSION_SECONDS = 3600  # since its last use
DELETE_UPLOADS = (60, 540)  # seconds between looks, and of age: what is never read is gone within 10 minutes
TITLE = """<h1>Where CaiT looks</h1>
<p>Class-attention image transformers show what they base a class on: choose an image, then click on a patch of it.</p>
"""


def launch(models: Sequence[str] = MODELS, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        models (sequence of `str`): checkpoints to choose from, the first at the beginning; names as every command
            takes them.
        host (`str`, *optional*): address to listen on; default: what `GRADIO_SERVER_NAME` says, as in a
            Space, else 127.0.0.1.
        port (`int`, *optional*): default: the first free one from 7860 on.

    Raises:
        ImportError: if Gradio is not installed.
        OSError: if the port is not free.
    """
    with page(models) as blocks:
        try:
            _, url, _ = blocks.launch(**launch_options(), server_name=host, server_port=port, prevent_thread_lock=True)
        except OSError as error:
            raise OSError(f"The page cannot be served at host {host}, port {port}: {error}") from error
        try:
            print(f"The page is at {url} until Ctrl-C.", flush=True)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # the way to end it, and no error
            pass
        finally:
            blocks.close(verbose=False)


def launch_options() -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`."""
    gradio = import_gradio()
    return {
        "share": False,
        "quiet": True,
        "max_file_size": LARGEST_UPLOAD,
        "state_session_capacity": SESSIONS,
        "enable_monitoring": False,
        "footer_links": [],
        "ssr_mode": False,
        "theme": gradio.themes.Base(
            primary_hue="orange",
            neutral_hue="slate",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ).set(body_text_color_subdued="*neutral_500", block_label_text_color="*neutral_600"),
        # The style as it is: of Gradio's own argument for it only some rules arrive.
        "head": f"<style>{text_of('page.css')}</style><script>{text_of('paste.js')}</script>",
    }


def text_of(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def import_gradio() -> Any:
    """Gradio, without its telemetry.

    Raises:
        ImportError: if it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f'The page needs Gradio ({error}): pip install "cait-hf[app]"') from error
    return gradio


@contextmanager
def page(models: Sequence[str]) -> Iterator[Any]:
    """The page as `gradio.Blocks`. Its folder of uploads is removed in the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="cait-hf-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield build(models)
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def refuse_foreign_files(blocks: Any) -> None:
    """Let no request name a file that is not in the folder of uploads, in the place of whichever input.

    Gradio downloads a URL, of any size, before a component sees it. The check is part of the page, as components are
    replaced in a session that changes them.
    """
    gr = import_gradio()
    utils = gr.processing_utils.client_utils
    folder, validate = Path(blocks.GRADIO_CACHE).resolve(), blocks.validate_inputs

    def check_file(file: dict[str, Any]) -> None:
        path = Path(file["path"]).resolve()
        if not (path.is_relative_to(folder) and path.is_file()):
            raise gr.Error("The file was not uploaded.", print_exception=False)

    def validate_inputs(block_fn: Any, inputs: list[Any]) -> None:
        utils.traverse(inputs, check_file, utils.is_file_obj_with_meta)
        validate(block_fn, inputs)

    blocks.validate_inputs = validate_inputs


def build(models: Sequence[str]) -> Any:
    """The page as `gradio.Blocks`: its components, and what each event changes before everything is shown again."""
    gr = import_gradio()

    samples = examples()
    script = text_of("panel.js")
    columns, names, resolutions, panels = [], [], [], []
    with gr.Blocks(title="cait-hf", fill_width=True, analytics_enabled=False, delete_cache=DELETE_UPLOADS) as blocks:
        session = gr.State(time_to_live=SESSION_SECONDS)
        gr.HTML(TITLE, apply_default_css=False, elem_id="title")
        error = gr.HTML(visible=False, apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=0, min_width=320, elem_id="controls"):
                upload = gr.Image(
                    sources=["upload", "clipboard"],
                    label="Image",
                    placeholder="Drop, paste or choose an image",
                    height=150,
                    elem_id="upload",
                )
                # The path of the file as it came: it is our code that opens it, within bounds. No subclass: beside its
                # file Gradio would write another.
                upload.preprocess = lambda payload: payload and payload.path
                gallery = gr.HTML(example_buttons(samples), js_on_load=script, apply_default_css=False)
                view = gr.Radio(
                    [(label, name) for name, label in VIEWS.items()], value="class", label="Show", elem_id="view"
                )
                layer = gr.Slider(0, LAST, value=LAST, step=1, label="Layer", buttons=[], elem_id="layer")
                head = gr.Dropdown([("mean of all", MEAN)], value=MEAN, label="Head", elem_id="head")
                side_by_side = gr.Checkbox(label="Two checkpoints side by side")
            with gr.Column(scale=1, min_width=300), gr.Row():
                for index in range(2):
                    with gr.Column(visible=index == 0, min_width=300) as column:
                        with gr.Row():
                            names.append(gr.Dropdown(list(models), value=models[0], label="Checkpoint", min_width=200))
                            resolutions.append(
                                gr.Slider(0, 1024, value=0, label="Resolution", buttons=[], min_width=180)
                            )
                        panels.append(
                            gr.HTML(js_on_load=script, apply_default_css=False, elem_classes="cait-container")
                        )
                    columns.append(column)
        controls = [view, layer, head, side_by_side, names[0], resolutions[0], names[1], resolutions[1]]
        outputs = [session, error, upload, *controls, *columns, *panels]

        def answer(session_now: Session | None, values: Sequence[Any], change: Callable[..., None]) -> dict:
            """New values of the outputs; after an error only its message."""
            try:
                known, chosen = session_now or Session(), Controls(*values)
                change(known, chosen)
                shown = show(known, chosen)
            except Exception as reason:
                if not isinstance(reason, ValueError | OSError):
                    logger.exception("The page met an error that it does not know.")
                return {error: gr.update(value=message(one_line(reason)), visible=True), upload: None}
            found = {
                session: known,
                error: gr.update(visible=False),
                upload: None,
                view: chosen.view,
                layer: gr.update(maximum=shown.num_layers - 1, value=shown.layer),
                head: gr.update(
                    choices=[("mean of all", MEAN), *((f"head {each}", each) for each in range(shown.num_heads))],
                    value=shown.head,
                    visible=chosen.view != "rollout",
                ),
                columns[1]: gr.update(visible=chosen.side_by_side),
            }
            for index, inspection in enumerate(shown.inspections):
                found[panels[index]] = shown.panels[index]
                found[resolutions[index]] = gr.update(
                    minimum=inspection.checkpoint.patch_size,
                    maximum=inspection.checkpoint.largest_resolution,
                    step=inspection.checkpoint.patch_size,
                    value=inspection.resolution,
                )
            return found

        def on(listen: Callable[..., Any], change: Callable[..., None], *, newest: bool = False) -> None:
            """Call `change(session, controls, event)` for an event, then show everything again."""

            def handler(
                event: gr.EventData,  # type: ignore[name-defined]  # by which Gradio knows it
                session_now: Session | None,
                *values: Any,
            ) -> dict:
                return answer(session_now, values, lambda known, chosen: change(known, chosen, event._data))

            options = {"concurrency_id": "model", "api_visibility": "private", "show_progress": "minimal"}
            listen(
                handler,
                [session, *controls],
                outputs,
                trigger_mode="always_last" if newest else "once",
                show_progress_on=panels,
                **options,
            )

        def nothing(known: Session, chosen: Controls, event: Any) -> None:
            pass

        on(blocks.load, nothing)
        on(gallery.select, lambda known, chosen, event: known.take(samples[event["index"]][1]))
        on(view.input, lambda known, chosen, event: chosen.look(chosen.view))
        for control in (layer, head, side_by_side, *resolutions):
            on(control.input, nothing, newest=True)

        def own_resolution(index: int) -> Callable[..., None]:
            return lambda known, chosen, event: setattr(chosen, ("resolution", "other_resolution")[index], 0)

        def click(index: int) -> Callable[..., None]:
            return lambda known, chosen, event: known.click(chosen, index, **event)

        for index in range(2):
            on(names[index].input, own_resolution(index))
            on(panels[index].select, click(index))

        def uploaded(path: str | None, session_now: Session | None, *values: Any) -> dict:
            if path is None:
                return {error: gr.update(visible=False)}
            return answer(session_now, values, lambda known, chosen: known.take(take_upload(Path(path))))

        upload.input(uploaded, [upload, session, *controls], outputs, concurrency_id="model", api_visibility="private")
        refuse_foreign_files(blocks)
    return blocks.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1, api_open=False)
