"""What is written follows no link, changes nothing of a refused run, and clears away only what is ours."""

import json
import os
import stat
import zlib

import pytest

from ntt_jax.errors import InputError
from ntt_jax.files import check_private, make_folder, open_in_place, remove_temporaries, replacing, write_json
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.lock import FolderLock

IDENTITY = {"memory": "a" * 64}


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_text("precious\n" * 9)
    yield path
    assert path.read_text() == "precious\n" * 9


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run"
    made.mkdir()
    return made


def start(folder, **more):
    with FolderLock(folder) as lock, RunFolder(lock, IDENTITY, **more) as run:
        run.records.append([{"image_id": 5}])


NAMES = ("lock", "finished.records", "finished-1.records", "run.json", "results.json", "metrics.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_a_run_folder_is_refused(precious, folder, name):
    (folder / name).symlink_to(precious)
    with pytest.raises(InputError, match="symbolic link"):
        start(folder)
    assert (folder / name).is_symlink()


@pytest.mark.parametrize("name", ["lock", "finished.records"])
def test_a_second_name_of_a_file_is_refused(precious, folder, name):
    os.link(precious, folder / name)
    with pytest.raises(InputError, match="2 names"):
        start(folder)


@pytest.mark.parametrize("name", ["finished.records", "finished-1.records", "report.html"])
def test_a_refused_restart_has_removed_nothing(folder, name):
    start(folder)
    for other in ("report.html", "results.json", "metrics.json"):
        (folder / other).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    before = sorted((path.name, path.is_file() and path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(InputError, match="is a folder"):
        start(folder, restart=True)
    assert sorted((path.name, path.is_file() and path.read_bytes()) for path in folder.iterdir()) == before


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_pipe_in_a_run_folder_does_not_hang(folder, name):
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match="a pipe"):
        start(folder)


@pytest.mark.parametrize("name", ["lock", "run.json"])
def test_a_file_of_another_program_stays(precious, folder, name):
    (folder / name).write_text(precious.read_text())
    with pytest.raises(InputError):
        start(folder)
    assert (folder / name).read_text() == precious.read_text()


def test_a_record_that_is_whole_and_none(folder):
    start(folder)
    before = (folder / "finished.records").read_bytes()
    for text in (b'{"image_id":7,"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"image_id":7,'):
        (folder / "finished.records").write_bytes(before + b"%08x %s\n" % (zlib.crc32(text), text))
        with pytest.raises(InputError, match="--restart"):
            start(folder)
        assert (folder / "finished.records").read_bytes().startswith(before)


def test_what_run_json_says_is_shown_clean(folder):
    start(folder)
    content = json.loads((folder / "run.json").read_text())
    content["identity"] |= {"memory": "\x1b]0;pwn\x07\x1b[2J", "x" * 100_000: 1}
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="another memory") as caught:
        start(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100


def test_infinity_in_run_json(folder):
    start(folder)
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"starts": []', '"starts": [1e999]'))
    with pytest.raises(InputError, match="--restart"):
        start(folder)


def test_folders_named_like_temporaries_block_nothing(folder):
    (folder / ".x.0123456789abcdef.tmp").mkdir()
    (folder / ".y.0123456789abcdef.tmp").touch()
    remove_temporaries(folder)
    assert [path.name for path in folder.iterdir()] == [".x.0123456789abcdef.tmp"]
    start(folder)


def test_files_are_not_written_through_links(precious, tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(precious)
    os.mkfifo(pipe)
    for path, kind in ((link, "symbolic link"), (pipe, "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=kind), replacing(path) as file:
            file.write(b"x")
    second = tmp_path / "second"
    os.link(precious, second)
    with replacing(second) as file:  # takes the place of this name; the other one keeps its content
        file.write(b"x")
    with pytest.raises(InputError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("inf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "precious", "second"]


def test_systems_without_nofollow(precious, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_NOFOLLOW")
    monkeypatch.delattr(os, "O_NONBLOCK")
    (tmp_path / "link").symlink_to(precious)
    with pytest.raises(InputError, match="symbolic link"):
        open_in_place(tmp_path / "link")
    os.close(open_in_place(tmp_path / "new"))


def test_folders_are_not_made_through_links(precious, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    make_folder(out / "masks" / "a", out)
    assert (out / "masks" / "a").is_dir()
    (out / "overlays").symlink_to(tmp_path)
    with pytest.raises(InputError, match="symbolic link"):
        make_folder(out / "overlays" / "b", out)
    with pytest.raises(InputError, match="lies outside"):
        make_folder(out / ".." / "c", out)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_private_folder_is_private_to_the_last_file(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (cache / "program").touch()
    (cache / "program").chmod(0o666)
    assert check_private(cache) is None  # nobody else can enter
    cache.chmod(0o755)
    assert "program in it can be written" in str(check_private(cache))
    (cache / "program").chmod(0o644)
    assert check_private(cache) is None
    os.link(cache / "program", tmp_path / "other")
    assert "second name" in str(check_private(cache))
    (tmp_path / "other").unlink()
    (cache / "link").symlink_to(tmp_path)
    assert "link in it" in str(check_private(cache))
    (cache / "link").unlink()
    cache.chmod(0o777)
    assert check_private(cache) == "it can be written by other users"
    cache.chmod(0o700)
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IWOTH)
    assert "can be written by other users" in str(check_private(cache))
    tmp_path.chmod(0o700)
