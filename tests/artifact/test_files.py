import os
import tempfile
from pathlib import Path

import pytest

from lrcompress.artifact import check_outputs, write_atomically
from lrcompress.errors import OutputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_content_is_written_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_the_check_sees_the_content_before_the_name_is_taken(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    seen = []
    write_atomically(
        tmp_path / "a", b"new", check=lambda path: seen.append((path.read_bytes(), (tmp_path / "a").read_bytes()))
    )
    assert seen == [(b"new", b"old")]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OutputError("refused")])
def test_a_check_that_raises_leaves_everything_as_it_was(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")

    def check(_):
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", b"new", check=check)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_full_disk_is_an_explained_error(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device") as refused:
        write_atomically(tmp_path / "a", b"new")
    assert refused.value.hint
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_an_explained_error(tmp_path):
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "nowhere" / "a", b"new")


def test_new_files_in_a_folder_pass(tmp_path):
    check_outputs([tmp_path / "a", tmp_path / "b"], overwrite=False)
    assert names(tmp_path) == []


def test_existing_files_are_refused_unless_they_may_be_overwritten(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(OutputError, match=r"`.*b` exists") as refused:
        check_outputs([tmp_path / "a", tmp_path / "b"], overwrite=False)
    assert "--overwrite" in refused.value.hint
    check_outputs([tmp_path / "a", tmp_path / "b"], overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path, overwrite):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_outputs([tmp_path / "a"], overwrite=overwrite)


def test_a_missing_folder_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(OutputError, match="no folder") as refused:
        check_outputs([tmp_path / "new" / "a"], overwrite=False)
    assert refused.value.hint == f"mkdir -p {tmp_path / 'new'}"


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    # The superuser may write anywhere, so the system's answer is replaced.
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"cannot write into .*: Permission denied"):
        check_outputs([tmp_path / "a"], overwrite=False)


@pytest.mark.parametrize("name", ["read", "link", "./read"])
def test_what_is_read_is_kept_under_whatever_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("read").write_bytes(b"weights")
    Path("link").symlink_to("read")
    for overwrite in (True, False):
        with pytest.raises(OutputError, match="read by the same command") as refused:
            check_outputs([Path(name)], overwrite=overwrite, inputs=[None, Path("gone"), Path("read")])
        assert refused.value.hint
    check_outputs([Path("another")], overwrite=True, inputs=[Path("read")])


def test_a_pipe_and_a_device_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(OutputError, match="a device or a pipe"):
            check_outputs([path], overwrite=True)


def test_of_a_symbolic_link_the_file_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "file").read_bytes() == content
    assert names(tmp_path / "disk") == ["file"]


def test_a_link_into_a_folder_that_is_not_there_and_a_ring_of_links_are_refused_before_the_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "file")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name, message in (("link", "no folder"), ("a", "leads nowhere|no folder|cannot write")):
        with pytest.raises(OutputError, match=message):
            check_outputs([tmp_path / name], overwrite=True)
        with pytest.raises(OutputError):
            write_atomically(tmp_path / name, b"new")
