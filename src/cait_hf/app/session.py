# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What one open page remembers, and what its controls and clicks make of it; without Gradio."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..visualization import patch_at
from .inspection import LARGEST_UPLOAD, Inspection, examples, load_checkpoint, read_image
from .panel import MEAN, panel


VIEWS = {"class": "Class token", "patch": "Patch", "rollout": "Rollout"}
LAST = 999  # in the place of a layer: the last one, of every model


@dataclass
class Controls:
    """What is chosen on the page, in the order of its components."""

    view: str
    layer: int
    head: int
    side_by_side: bool
    name: str
    resolution: int
    other_name: str
    other_resolution: int

    @property
    def panels(self) -> list[tuple[str, int]]:
        """Name and resolution of each panel that is shown."""
        both = [(self.name, self.resolution), (self.other_name, self.other_resolution)]
        return both if self.side_by_side else both[:1]

    def look(self, view: str) -> None:
        """Change to a view, and there to the layer that sums it up."""
        self.view, self.layer, self.head = view, 0 if view == "rollout" else LAST, MEAN


class Session:
    """The image of one open page, the patch that looks, and the inspections that are shown."""

    def __init__(self) -> None:
        self.image: bytes | Image.Image = examples()[0][1]
        self._place = (0.5, 0.5)  # (x, y) of the patch that looks, in fractions of the square that the models see
        self._inspections: dict[int, tuple[tuple[str, int], Inspection]] = {}

    def take(self, image: bytes | Image.Image) -> None:
        """Another image, or the bytes of its file."""
        self.image = image
        self._inspections = {}

    def inspect(self, index: int, name: str, resolution: int) -> Inspection:
        """What panel `index` shows; a resolution of 0 is the checkpoint's own."""
        key = (name, resolution or load_checkpoint(name)[0].own_resolution)
        if index not in self._inspections or self._inspections[index][0] != key:
            image = read_image(self.image) if isinstance(self.image, bytes) else self.image
            self._inspections[index] = (key, Inspection(name, image, key[1]))
        return self._inspections[index][1]

    def patch(self, inspection: Inspection) -> tuple[int, int]:
        """(row, column) of the patch that looks, in the grid of an inspection."""
        rows, columns = inspection.grid
        return int(self._place[1] * rows), int(self._place[0] * columns)

    def click(self, controls: Controls, panel_index: int, kind: str, index: Any) -> None:
        """What a click or a key within a panel asks for, as `panel.js` says it.

        Raises:
            ValueError: if it is at a place of the image that the model does not see.
        """
        if kind == "layer":
            controls.layer = int(index)
        elif kind == "head":
            controls.head = int(index)
        else:
            inspection = self.inspect(panel_index, *controls.panels[panel_index])
            rows, columns = inspection.grid
            if kind == "move":
                row, column = (old + int(step) for old, step in zip(self.patch(inspection), index))
                row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
            else:
                width, height = inspection.shown.size
                found = patch_at((index[0] * width, index[1] * height), (width, height), inspection.grid)
                if found is None:
                    raise ValueError("The model sees only the bright square of the image: click into it.")
                row, column = found
            self._place = ((column + 0.5) / columns, (row + 0.5) / rows)
            if controls.view != "patch":
                controls.look("patch")


@dataclass
class Shown:
    """What the page shows for its controls: of each panel its inspection and HTML, and what can be chosen.

    Of two models that differ, what one of them has can be chosen: the other shows its last layer, or the mean of its
    heads, and says so.
    """

    inspections: list[Inspection]
    panels: list[str]
    layer: int
    num_layers: int
    head: int
    num_heads: int


def show(session: Session, controls: Controls) -> Shown:
    """Inspect the image as the controls say.

    Raises:
        ValueError: if a checkpoint cannot be shown or the resolution is not allowed.
        OSError: if a checkpoint does not exist or cannot be fetched.
    """
    inspections = [session.inspect(index, *chosen) for index, chosen in enumerate(controls.panels)]
    maps = [inspection.maps(controls.view, session.patch(inspection)) for inspection in inspections]
    num_layers, num_heads = max(map(len, maps)), max(each.shape[1] for each in maps)
    layer = min(controls.layer, num_layers - 1)
    head = controls.head if controls.head < num_heads else MEAN
    panels = [panel(each, controls.view, layer, head, session.patch(each)) for each in inspections]
    return Shown(inspections, panels, layer, num_layers, head, num_heads)


def take_upload(path: Path) -> bytes:
    """The bytes of an uploaded file, which is deleted.

    Raises:
        ValueError: if it is no image, or too large.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_UPLOAD:
            raise ValueError(f"The file has {size / 2**20:.1f} MB, but at most {LARGEST_UPLOAD // 2**20} MB are read.")
        content = path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
    read_image(content)
    return content
