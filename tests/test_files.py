import os
import threading

import pytest

from vicinal.files import replacing, write_text


def half_written(path, error):
    with replacing(path) as file:
        file.write(b"half of it")
        raise error


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_is_not_written_whole_is_not_written(tmp_path, there, error):
    path = tmp_path / "a.txt"
    if there:
        path.write_text("precious")
    before = {each: each.read_text() for each in tmp_path.iterdir()}
    with pytest.raises(type(error)):
        half_written(path, error)
    assert {each: each.read_text() for each in tmp_path.iterdir()} == before


def test_an_interrupted_replacement_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    path.write_text("precious")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["precious"]


def test_text_is_written(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "\N{MICRO SIGN}s\n")
    assert path.read_bytes() == b"\xc2\xb5s\n"


def test_links_and_permissions_stay(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.touch(0o640)
    link.symlink_to(path)
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_permissions_of_new_files(tmp_path):
    write_text(tmp_path / "a.txt", "new")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    """Nor would a device be replaced by a file, as root could."""
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_text(path, "words")
    reader.join(10)
    assert read == ["words"]
    assert path.is_fifo()
