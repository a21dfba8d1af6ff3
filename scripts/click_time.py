"""How long a click on the page of `ntt-jax app` takes, in a real Chromium: from the button's release to the mask.

    pip install playwright; apt-get install chromium
    python scripts/click_time.py                    # the small models
    python scripts/click_time.py --size L+L         # Hiera-L and ViT-L with random weights, which cost as much

Two kinds of photos: made scenes of about 370 x 320 pixels, and photos of 12 megapixels, which the page shows at 1280.
Prints, for each, the seconds that encoding took, and of the clicks the median and the slowest: in all, until the page
asks, until the server has answered, and until the mask is painted. Random weights make ragged masks, which are the
worst case for the page.
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright  # pyright: ignore[reportMissingImports]

import ntt_jax
from ntt_jax.app import running
from ntt_jax.config import DINOV2_CONFIGS, SAM2_CONFIGS
from ntt_jax.demo.demo import SMALL_DETECT, convert_checkpoints, make_benchmark
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.models.dinov2 import DinoVisionTransformer
from ntt_jax.models.sam2.sam2_base import Sam2

SIZES = {"T+S": ("sam2_hiera_tiny", "dinov2_vits14"), "L+L": ("sam2_hiera_large", "dinov2_vitl14")}
WATCH = """() => {
  window.clicks = [];
  let up = 0;
  addEventListener("pointerup", (event) => { up = event.timeStamp; }, true);
  const decode = editor.decode;
  editor.decode = async function () {
    const began = up;
    await decode.call(editor);
    requestAnimationFrame(() => setTimeout(() => {
      const asked = performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/masks")).at(-1);
      window.clicks.push([began, asked.startTime, asked.responseEnd, performance.now(), asked.encodedBodySize]);
      performance.clearResourceTimings();
    }));
  };
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", *SIZES], default="small")
    parser.add_argument("--clicks", type=int, default=20, help="on each photo (default: 20)")
    args = parser.parse_args()
    ntt_jax.use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scenes = list(make_benchmark(place, 0, 2, 1).target_images())
        photos = place / "photos"
        photos.mkdir()
        for number, scene in enumerate(scenes):
            Image.fromarray(scene).save(photos / f"scene {number}.png")
            Image.fromarray(scene).resize((4000, 3000)).save(photos / f"twelve megapixels {number}.jpg")
        with served(photos, *models(args.size, place)) as url:
            wait_for_warming()
            measure(url, sorted(p for p in photos.iterdir() if p.is_file()), args.clicks)


@contextlib.contextmanager
def served(photos: Path, sam2: Any, dinov2: Any) -> Iterator[str]:
    """The address of the page of a folder, as long as it is served by this process."""
    address = running.listen("127.0.0.1", 0)
    with running.page(photos, sam2, dinov2, address, config=SMALL_DETECT) as guard:
        server = running.make_server(guard)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [address.listener]}, daemon=True)
        thread.start()
        try:
            yield f"{address.url}/?token={address.token}"
        finally:
            server.should_exit = True
            thread.join()


def models(size: str, folder: Path) -> tuple[Any, Any]:
    """SAM 2 and DINOv2: the small trained ones, or of a published size with random weights."""
    if size == "small":
        sam2, dinov2 = convert_checkpoints(folder / "weights")
        return load_sam2(sam2), load_dinov2(dinov2)
    names = SIZES[size]
    return (
        Sam2(SAM2_CONFIGS[names[0]], rngs=nnx.Rngs(0)),
        DinoVisionTransformer(DINOV2_CONFIGS[names[1]], rngs=nnx.Rngs(0)),
    )


def wait_for_warming() -> None:
    """Until what the first clicks need is compiled."""
    began = time.perf_counter()
    for thread in threading.enumerate():
        if thread.name == "warming":
            thread.join()
    print(f"ready after {time.perf_counter() - began:.1f} s")


def measure(url: str, photos: list[Path], clicks: int) -> None:
    """Open every photo, click, and print."""
    with sync_playwright() as driver:
        browser = launch(driver)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(300_000)
        page.goto(url)
        page.evaluate(WATCH)
        kinds: dict[str, list[list[float]]] = {}
        for photo in photos:
            began = time.perf_counter()
            page.locator("#photos .open").filter(has=page.get_by_text(photo.name, exact=True)).click()
            expect(page.locator("#stage-status")).to_have_text("ready for clicks", timeout=300_000)
            print(f"{photo.name}: opened and encoded in {time.perf_counter() - began:.2f} s")
            kinds.setdefault(photo.name.rsplit(" ", 1)[0], []).extend(click(page, clicks))
            page.keyboard.press("Escape")
        browser.close()
    for kind, found in kinds.items():
        print(f"{kind}, {len(found)} clicks, milliseconds, median (slowest):")
        for name, first, last in (("in all", 0, 3), ("page", 0, 1), ("server", 1, 2), ("mask painted", 2, 3)):
            spent = [one[last] - one[first] for one in found]
            print(f"  {name}: {statistics.median(spent):.0f} ({max(spent):.0f})")
        print(f"  bytes of an answer: {statistics.median(one[4] for one in found):.0f}")


def launch(driver: Playwright) -> Browser:
    """The Chromium of this machine."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    return driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])


def click(page: Page, count: int) -> list[list[float]]:
    """Milliseconds of so many clicks: release, question, answer, painted; bytes of the answer."""
    generator = np.random.default_rng(0)
    page.evaluate("() => { window.clicks = []; }")
    for number in range(count):
        at = page.locator("#overlay").bounding_box()
        assert at is not None
        x, y = generator.uniform(0.1, 0.9, 2)
        page.mouse.click(at["x"] + x * at["width"], at["y"] + y * at["height"])
        while page.evaluate("() => window.clicks.length") <= number:
            page.wait_for_timeout(20)
        if number % 2:  # every second click is the second one on an object
            page.click("#clear")
    return page.evaluate("() => window.clicks")


if __name__ == "__main__":
    main()
