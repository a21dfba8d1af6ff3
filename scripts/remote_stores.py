"""Images in a store, against an imitation of it on this machine: what is read, listed, and said when it fails.

    pip install s3fs 'moto[server]'           && python scripts/remote_stores.py s3
    pip install gcsfs gcp-storage-emulator    && python scripts/remote_stores.py gs 2>/dev/null
    pip install adlfs && npm install azurite  && python scripts/remote_stores.py az node_modules/.bin/azurite-blob

The imitations speak the protocols of S3 and of the stores of Google and Azure; s3fs, gcsfs and adlfs, which speak to
them, are the real ones. Not imitated: speed, throttling, regions, credentials of machines.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ntt_jax.errors import InputError
from ntt_jax.images.photos import find_photos
from ntt_jax.images.reading import read_image
from ntt_jax.images.remote import Address, location
from ntt_jax.runs.copies import copy_out
from ntt_jax.runs.observer import SILENT
from ntt_jax.runs.segment_job import as_dataset


def s3(server: str | None) -> Callable[[], None]:
    """Start an imitation of S3; returns what stops it."""
    from moto.server import ThreadedMotoServer  # pyright: ignore[reportMissingImports]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    return moto.stop


def gs(server: str | None) -> Callable[[], None]:
    """The same for Google's store."""
    from gcp_storage_emulator.server import create_server  # pyright: ignore[reportMissingImports]

    emulator = create_server("127.0.0.1", port := free_port(), in_memory=True)
    emulator.start()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # asks of the bucket by another protocol
    os.environ["FSSPEC_GS_TOKEN"] = os.environ["FSSPEC_GCS_TOKEN"] = "anon"
    return emulator.stop


def az(server: str | None) -> Callable[[], None]:
    """The same for Azure's."""
    port = free_port()
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobPort", str(port)]
    process = subprocess.Popen([server or "azurite-blob", *options])
    # Account and key of the emulator, the same in every installation.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    account = f"AccountName=devstoreaccount1;AccountKey={key};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    os.environ["AZURE_STORAGE_CONNECTION_STRING"] = f"DefaultEndpointsProtocol=http;{account}"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.2)

    def stop() -> None:
        process.kill()
        process.wait()

    return stop


STORES = {"s3": s3, "gs": gs, "az": az}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def fails(what: str, place: Any) -> None:
    """Show the line for what cannot be read."""
    started = time.monotonic()
    try:
        read_image(place)
    except InputError as error:
        print(f"{what} ({time.monotonic() - started:.1f} s): {error}")
    else:
        raise SystemExit(f"{what}: was read")


def main() -> None:
    """All of it, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scheme", choices=STORES)
    parser.add_argument("server", nargs="?", help="az: azurite-blob")
    args = parser.parse_args()
    stop = STORES[args.scheme](args.server)
    try:
        check(args.scheme, stop)
    finally:
        stop()


def check(scheme: str, stop: Callable[[], None]) -> None:
    """What is there for every store; stops the server before its last line."""
    import fsspec

    store: Any = fsspec.filesystem(scheme)
    store.mkdir("photos")
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(200):
            name = f"{number % 3}/a b #{number}.jpg"
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
            store.pipe(f"photos/{name}", path.read_bytes())
        started = time.monotonic()
        found = find_photos([location(f"{scheme}://photos")])
        print(f"listed {len(found)} in {time.monotonic() - started:.2f} s")
        started = time.monotonic()
        for number in range(200):
            name = f"{number % 3}/a b #{number}.jpg"
            if not np.array_equal(read_image(location(f"{scheme}://photos") / name), read_image(Path(folder) / name)):
                raise SystemExit(f"{name}: other pixels")
        print(f"read 200, equal to the files, {(time.monotonic() - started) / 200 * 1000:.1f} ms each")
        matching = find_photos([location(f"{scheme}://photos/1/*.jpg")])
        print(f"a pattern: {len(matching)} of {sum(number % 3 == 1 for number in range(200))}")
        before = as_dataset(found, "upright")[1]
        store.pipe("photos/0/a b #0.jpg", (Path(folder) / "1/a b #1.jpg").read_bytes())
        after = as_dataset(find_photos([location(f"{scheme}://photos")]), "upright")[1]
        print(f"photos with another id after one was replaced: {sum(before[n] != after[n] for n in before)}")
        (Path(folder) / "detections.json").write_text("{}")
        names = [f"{number % 3}/a b #{number}.jpg" for number in range(200)]
        target = location(f"{scheme}://photos/found")
        assert isinstance(target, Address)
        counts = [copy_out(Path(folder), [*names, "detections.json"], target, SILENT) for _ in range(2)]
        same = all(store.cat(f"photos/found/{name}") == (Path(folder) / name).read_bytes() for name in names)
        print(f"copied {counts[0]} files, again {counts[1]}; {'equal' if same else 'NOT EQUAL'}")
    store.pipe("photos/notes.jpg", b"no image")
    fails("no image", location(f"{scheme}://photos/notes.jpg"))
    fails("no such key", location(f"{scheme}://photos/none.jpg"))
    fails("no such bucket", location(f"{scheme}://other/none.jpg"))
    stop()
    fails("nobody there", location(f"{scheme}://photos/1/a b #1.jpg"))


if __name__ == "__main__":
    sys.exit(main())
