"""What a run wrote, copied to a store: whole, once, the file that speaks of the others last."""

import pytest

from ntt_jax.errors import InputError
from ntt_jax.formats import Output
from ntt_jax.images import remote
from ntt_jax.images.remote import location
from ntt_jax.runs import copies
from ntt_jax.runs.copies import NOTE, check_target, copy_out, written
from ntt_jax.runs.observer import SILENT

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(monkeypatch):
    """A store within this process, which keeps in `puts` what was put, and refuses names in `broken`."""
    monkeypatch.setattr(copies, "PAUSE", 0.0)
    system = fsspec.filesystem("memory")
    system.puts, system.broken, real = [], {}, type(system).put_file

    def put_file(here, path, *args, **options):
        name = path.removeprefix("/made/out/")
        if system.broken.get(name):
            system.broken[name] -= 1
            raise OSError(5, "the store is tired")
        system.puts.append(name)
        return real(system, here, path, *args, **options)

    monkeypatch.setattr(system, "put_file", put_file, raising=False)
    monkeypatch.setattr(remote, "_system", lambda scheme: system)
    yield system
    if system.exists("/made"):
        system.rm("/made", recursive=True)


@pytest.fixture
def made(tmp_path):
    for name in ("masks/a b/001_dog.png", "detections.json", "run.json", "parquet/mine.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 9)
    with Output(tmp_path) as output, output.of("parquet"):
        output.write("parquet/part-00000.parquet", b"rows")
    return tmp_path


def copy(made, to="memory://made/out"):
    return copy_out(made, written(made, ("masks",), ("parquet", "csv"), "detections.json"), location(to), SILENT)


def test_files_arrive_once_and_detections_last(made, store):
    names = ["masks/a b/001_dog.png", "parquet/part-00000.parquet", "detections.json"]
    assert copy(made) == 3 and sorted(store.puts[:2]) == names[:2] and store.puts[2] == names[2]
    assert all(store.cat_file(f"/made/out/{name}") == (made / name).read_bytes() for name in names)
    assert copy(made) == 0
    (made / names[1]).write_bytes(b"changed")
    assert copy(made) == 1 and store.puts[3:] == [names[1]]
    assert copy(made, "memory://made/other") == 3


def test_a_store_that_fails(made, store):
    """A moment is waited for; what has arrived is not put again."""
    store.broken = {"parquet/part-00000.parquet": remote.TRIES - 1}
    assert copy(made) == 3
    (made / NOTE).unlink()
    store.broken = {"detections.json": remote.TRIES}
    with pytest.raises(InputError, match=r"detections.json: cannot be written: .*the store is tired"):
        copy(made)
    assert copy(made) == 1


def test_a_list_that_is_not_ours(made, store):
    (made / NOTE).write_bytes(b"memory://made/out\n\xff\0\nno digest\n" + b"0" * 64 + b"  detections.json\ncut")
    assert copy(made) == 3


def test_where_nothing_can_be_put(tmp_path):
    for target in ("https://example.org/x", "folder"):
        with pytest.raises(InputError, match=r"web address|expected an address"):
            check_target(location(target))
