"""Files of tensors: whole or not at all."""

import os

import pytest

import vaelib.files as files
from vaelib.files import remove_unfinished, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("file", ".file.bak", ".other.12", "file.12")]
    for path in (*kept, tmp_path / ".file.12", tmp_path / f".file.{os.getpid()}"):
        path.write_bytes(b"x")
    remove_unfinished(tmp_path / "file")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
