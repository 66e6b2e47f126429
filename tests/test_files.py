# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Files that appear complete or not at all. Folders are tested with the conversion, in `test_conversion.py`."""

import pytest

from cait_hf.files import replacing, write_json


def test_an_error_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("earlier")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_json_of_which_a_part_cannot_be_written_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"b": 1, "a": 2}, sort_keys=True)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{"a": 2, "b": 1}\n' and list(tmp_path.iterdir()) == [path]
