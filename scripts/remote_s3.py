"""Images in S3, against an imitation of it on this machine: what is read, listed, and said when it fails.

    pip install s3fs 'moto[server]'
    python scripts/remote_s3.py

moto (https://docs.getmoto.org) speaks S3's protocol; s3fs and botocore, which speak to it, are the real ones. Not
imitated: speed, throttling, regions, credentials of machines. Other stores (`gs://`, `az://`) are read by the same code
through their own packages, and were not tried.
"""

import logging
import os
import sys
import tempfile
import time
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
    from moto.server import ThreadedMotoServer  # pyright: ignore[reportMissingImports]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    import fsspec

    store: Any = fsspec.filesystem("s3")
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
        found = find_photos([location("s3://photos")])
        print(f"listed {len(found)} in {time.monotonic() - started:.2f} s")
        started = time.monotonic()
        for number in range(200):
            name = f"{number % 3}/a b #{number}.jpg"
            if not np.array_equal(read_image(location("s3://photos") / name), read_image(Path(folder) / name)):
                raise SystemExit(f"{name}: other pixels")
        print(f"read 200, equal to the files, {(time.monotonic() - started) / 200 * 1000:.1f} ms each")
        print(
            f"a pattern: {len(find_photos([location('s3://photos/1/*.jpg')]))} of {sum(n % 3 == 1 for n in range(200))}"
        )
        before = as_dataset(found, "upright")[1]
        store.pipe("photos/0/a b #0.jpg", (Path(folder) / "1/a b #1.jpg").read_bytes())
        after = as_dataset(find_photos([location("s3://photos")]), "upright")[1]
        print(f"photos with another id after one was replaced: {sum(before[n] != after[n] for n in before)}")
        (Path(folder) / "detections.json").write_text("{}")
        names = [f"{number % 3}/a b #{number}.jpg" for number in range(200)]
        target = location("s3://photos/found")
        assert isinstance(target, Address)
        counts = [copy_out(Path(folder), [*names, "detections.json"], target, SILENT) for _ in range(2)]
        same = all(store.cat(f"photos/found/{name}") == (Path(folder) / name).read_bytes() for name in names)
        print(f"copied {counts[0]} files, again {counts[1]}; {'equal' if same else 'NOT EQUAL'}")
    store.pipe("photos/notes.jpg", b"no image")
    fails("no image", location("s3://photos/notes.jpg"))
    fails("no such key", location("s3://photos/none.jpg"))
    fails("no such bucket", location("s3://other/none.jpg"))
    server.stop()
    fails("nobody there", location("s3://photos/1/a b #1.jpg"))


if __name__ == "__main__":
    sys.exit(main())
