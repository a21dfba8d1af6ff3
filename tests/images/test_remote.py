"""Images elsewhere: the bytes of a file, whatever the server does, within limits and with one line for what fails."""

import errno
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_server import ImageServer
from PIL import Image

from ntt_jax.datasets import load_dataset
from ntt_jax.datasets.image_files import survey
from ntt_jax.errors import InputError
from ntt_jax.images import reading, remote
from ntt_jax.images.photos import find_photos
from ntt_jax.images.reading import open_image_size, read_image
from ntt_jax.images.remote import Address, fetch, is_pattern, location
from ntt_jax.images.trial import fatal
from ntt_jax.runs.images import check_images, read_checked
from ntt_jax.runs.paths import check_folder, check_input
from ntt_jax.runs.segment_job import as_dataset

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")
from ntt_jax.images import link_pages  # noqa: E402 needs it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("elsewhere")
    generator = np.random.default_rng(4)
    for name in ("a.png", "b.jpg", "c #1?é%20.png", "deep/d.png"):
        (made / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(made / name)
    (made / "notes.md").write_text("no photo")
    (made / "broken.png").write_bytes((made / "a.png").read_bytes()[:200])
    (made / "empty.png").touch()
    return made


@pytest.fixture(scope="module")
def server(folder):
    pytest.importorskip("aiohttp")
    with ImageServer(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.001)


@pytest.fixture
def memory(folder):
    """The same files in fsspec's store within a process."""
    store = fsspec.filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe(f"/bucket/{file.relative_to(folder).as_posix()}", file.read_bytes())
    yield location("memory://bucket")
    store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c #1?é%20.png", "deep/d.png"])
def test_pixels_are_those_of_the_file(folder, server, memory, name):
    expected = read_image(folder / name)
    for place in (location(server.url), memory):
        assert np.array_equal(read_image(place / name), expected)
        assert open_image_size(place / name) == (20, 30)


@pytest.mark.parametrize(
    ("path", "said", "asked"),
    [
        ("none.png", "there is none", 1),
        ("status/403/a.png", r"no permission \(the server answers 403\)", 1),
        ("status/503/a.png", "the server answers 503", remote.TRIES),
        ("cut/a.png", "ClientPayloadError", remote.TRIES),
        ("endless/a.png", "larger than the limit of 100,000 bytes", 1),
        ("broken.png", "truncated|cut", 1),
        ("empty.png", "found an empty file", 1),
        ("notes.md", "not an image", 1),
    ],
)
def test_what_fails_is_one_line(server, monkeypatch, path, said, asked):
    monkeypatch.setattr(reading, "MAX_IMAGE_BYTES", 100_000)
    server.requests.clear()
    with pytest.raises(InputError) as caught:
        read_image(location(server.url) / path)
    line = str(caught.value)
    assert line.startswith(f"{server.url}/{path}: ") and re.search(said, line) and "\n" not in line
    assert server.requests == {f"/{path}": asked}


class Answered(Exception):
    """As the errors of libraries that say what a store answered."""

    def __init__(self, **answer):
        super().__init__("of the store")
        self.__dict__ |= answer


@pytest.mark.parametrize(
    ("error", "said", "of_the_file"),
    [
        (OSError("Forbidden: bucket/a.png\nno access"), "no permission (the server answers 403)", True),
        (Answered(status_code=403), "no permission (the server answers 403)", True),
        (Answered(code=404), "there is none (the server answers 404)", True),
        (Answered(status_code=503), "the server answers 503", False),
        (Answered(code=401), "no permission (the server answers 401)", False),
        (Answered(code="InvalidRange"), "Answered: of the store", False),
    ],
)
def test_what_stores_say(error, said, of_the_file, capsys):
    """Of Google's and Azure's libraries: whether an image is skipped, or the command ends."""

    class Shut(fsspec.AbstractFileSystem):
        def _open(self, path, mode="rb", **options):
            logging.getLogger(type(self).__module__).error("not on stderr")
            raise error

    fsspec.register_implementation("shut", Shut, clobber=True)
    remote._system.cache_clear()
    with pytest.raises(InputError) as caught:
        fetch(location("shut://bucket/a.png"), max_bytes=100, what="image")
    assert str(caught.value) == f"shut://bucket/a.png: cannot read the image: {said}"
    lost = isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EHOSTUNREACH
    assert lost != of_the_file and not capsys.readouterr().err


def test_a_length_beyond_the_limit_is_not_fetched(server):
    with pytest.raises(InputError, match="larger than the limit of 100 bytes"):
        fetch(location(server.url) / "a.png", max_bytes=100, what="image")


def test_a_server_that_recovers(folder, server):
    assert np.array_equal(read_image(location(server.url) / "after/2/500/a.png"), read_image(folder / "a.png"))


def test_a_server_that_is_silent(server, monkeypatch):
    monkeypatch.setattr(remote, "_SILENCE", 0.05)
    remote._system.cache_clear()
    fsspec.filesystem("http").clear_instance_cache()
    try:
        with pytest.raises(InputError) as caught:
            read_image(location(server.url) / "silent/a.png")
    finally:
        remote._system.cache_clear()
    # As a network disk that is gone: the run ends, and does not call every image after it unreadable.
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ETIMEDOUT


def test_a_file_that_has_moved(folder, server):
    assert np.array_equal(read_image(location(server.url) / "moved/a.png"), read_image(folder / "a.png"))
    with pytest.raises(InputError, match="cannot read the image: TooManyRedirects") as caught:
        read_image(location(server.url) / "round/a.png")
    assert "\n" not in str(caught.value)


def test_pages_of_links_without_an_end(server, monkeypatch):
    """In bytes, in links that never close, in folders that go round in circles."""
    monkeypatch.setattr(link_pages, "MAX_PAGE", 2**20)
    with pytest.raises(InputError, match=r"cannot be listed: .*the page of links is larger than 1,048,576 bytes"):
        find_photos([location(server.url) / "bomb/"])
    monkeypatch.setattr(remote, "MAX_FOLDERS", 50)
    server.requests.clear()
    with pytest.raises(InputError, match="more than 50 folders; give those that matter"):
        find_photos([location(server.url) / "circle/"])
    assert server.requests.total() < 200


def test_links_of_a_page():
    text = """<A class="x > y" href="no"><a name="1" HREF = 'b c.jpg'>x</a> <a href="../up.png"> <a href="http://h/d.png">
    see https://h/e.png for more <abbr href="none"><a href="">"""
    assert list(link_pages.links(text)) == [
        "b c.jpg",
        "../up.png",
        "http://h/d.png",
        "http://h/d.png",
        "https://h/e.png",
    ]
    assert not list(link_pages.links("<a " * 10**6)) and not list(link_pages.links("<a" + " " * 10**6))


def test_keys_are_not_shown(server, folder):
    address = Address(f"{server.url.replace('//', '//me:secret@')}/none.png?X-Amz-Signature=abc&id=3")
    with pytest.raises(InputError) as caught:
        read_image(address)
    assert str(address) == f"{server.url}/none.png" and "secret" not in str(caught.value)
    assert "abc" not in str(caught.value) + address.identity and "id=3" in address.identity


def test_what_is_missing_is_named(monkeypatch):
    for text, said in (
        ("s4://bucket/images", "'s4' is not known"),
        ("simplecache::s3://b/c", "addresses within addresses"),
    ):
        with pytest.raises(InputError, match="--images: .*" + said):
            check_input(location(text), "images")
    code = "import sys; sys.modules['aiohttp'] = None; from ntt_jax.images.remote import location as l; l('http://h/').check()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "http://h/: needs aiohttp; pip install 'ntt-jax[remote]'" in done.stderr


def test_an_address_of_this_machine_is_a_path(tmp_path):
    assert location(f"file://{tmp_path}/a.png") == tmp_path / "a.png"
    assert not isinstance(location("C:/photos"), Address)
    for name, what in (("annotations", "s3://bucket/a.json"), ("references", "https://host/r.json")):
        with pytest.raises(InputError, match=f"--{name}: expected a path of this machine, found an address"):
            check_input(Path(what), name)
    with pytest.raises(InputError, match=r"FOLDER: expected a path .* \(gs://\); only photos"):
        check_folder(Path("gs://bucket/references"), "FOLDER")
    assert is_pattern(location("http://[::1]/a/*.png")) and not is_pattern(location("http://[::1]/a.png"))


def dataset_of(tmp_path, *names, size=(20, 30)):
    images = [{"id": i, "file_name": n, "height": size[0], "width": size[1]} for i, n in enumerate(names, 1)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}))
    return load_dataset(path)


def test_images_of_annotations(server, tmp_path):
    """A missing image is skipped; a server that is gone ends the work; nothing but what is read is asked for."""
    place, dataset = location(server.url), dataset_of(tmp_path, "none.png", "a.png", "status/503/a.png")
    server.requests.clear()
    dataset = survey(dataset, place)
    assert not server.requests
    check_images(dataset, place)
    missing, read = (read_checked(dataset, place, dataset.images[i]) for i in (1, 2))
    assert isinstance(missing, str) and "there is none" in missing and not isinstance(read, str)
    with pytest.raises(OSError, match="503"):
        read_checked(dataset, place, dataset.images[3])
    assert fatal(place / "a.png") is None


def test_no_image_of_the_annotations_is_there(server, tmp_path):
    for names, said in ((["x.png", "y.png"], "none of the first 2 images"), (["status/403/a.png"], "no permission")):
        with pytest.raises(InputError, match=said):
            check_images(dataset_of(tmp_path, *names), location(server.url))


def test_photos_of_a_folder_a_pattern_and_a_list(server, memory, folder, tmp_path):
    notes: list[str] = []
    names = {"a.png", "b.jpg", "broken.png", "c _1_é%20.png", "deep/d.png", "empty.png"}
    found = find_photos([memory], note=notes.append)
    assert {name.replace(" .png", "%20.png") for name in found} == names
    assert "notes.md" in notes[0]
    assert set(find_photos([location("memory://bucket/**/*.png")])) >= {"a.png", "deep/d.png"}
    assert set(find_photos([location(server.url)])) >= {"a.png", "b.jpg", "deep/d.png"}

    lines = [f"{server.url}/a.png", "# the same name elsewhere", "memory://bucket/a.png", f"{server.url}/../../x.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    listed = find_photos([tmp_path / "list.txt"])
    host = server.url.removeprefix("http://").replace(":", "_")
    assert list(listed) == [f"{host}/a.png", "bucket/a.png", f"{host}/x.png"]
    for line in ("/etc/passwd", "file:///etc/passwd"):
        (tmp_path / "list.txt").write_text(line)
        with pytest.raises(InputError, match="line 1: expected an address"):
            find_photos([tmp_path / "list.txt"])


def test_a_photo_that_changes_is_another_one(memory):
    def ids():
        return as_dataset(find_photos([memory]), "upright")[1]

    before = ids()
    fsspec.filesystem("memory").pipe("/bucket/a.png", b"other bytes")
    after = ids()
    assert len(set(before.values())) == len(before)
    assert {name for name in before if before[name] != after[name]} == {"a.png"}
