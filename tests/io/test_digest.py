"""Digests against ``hashlib`` on the text by hand."""

import hashlib
from pathlib import Path

from anomdino.io.digest import file_sha256, json_sha256


def test_a_file_is_digested_as_a_whole(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_values_are_digested_by_their_text_whatever_the_order_of_their_keys():
    text = b'{"a": [1, 0.5, null], "b": {"c": "/x", "d": true}}'
    content = {"b": {"d": True, "c": Path("/x")}, "a": (1, 0.5, None)}
    assert json_sha256(content) == hashlib.sha256(text).hexdigest()
