"""Draw the pictures of docs/app.md: the page of `ntt-jax app` in a real Chromium, on made scenes with the small models.

pip install 'ntt-jax[app]' playwright; apt-get install chromium
python scripts/draw_app.py --out docs
"""

import argparse
import collections
import io
import tempfile
from pathlib import Path

import numpy as np
from click_time import launch, models, served, wait_for_warming
from draw_method import save_jpeg
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright  # pyright: ignore[reportMissingImports]

import ntt_jax
from ntt_jax.datasets.dataset import CocoAnnotation, CocoDataset
from ntt_jax.demo.demo import make_benchmark

SCENES, CLASSES, SHOTS = 12, 3, 2
_WITHIN = 300_000  # milliseconds


def main() -> None:
    """Show references by boxes, find, and write app.jpg (all photos) and app_photo.jpg (one of them)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    args = parser.parse_args()
    ntt_jax.use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        targets = make_benchmark(Path(folder), 0, SCENES, 1).targets
        photos = Path(folder) / "targets" / "images"
        with served(photos, *models("small", Path(folder))) as url, sync_playwright() as driver:
            wait_for_warming()
            page = launch(driver).new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.set_default_timeout(_WITHIN)
            page.goto(url)
            for annotation in chosen(targets):
                show(page, targets, annotation)
            page.click("#find")
            expect(page.locator("#progress")).to_contain_text(f"Done: {SCENES} of {SCENES}", timeout=_WITHIN)
            page.evaluate(
                "() => { document.getElementById('folder').textContent = 'photos'; }"
            )  # not this machine's path
            write(page, args.out / "app.jpg")
            shown = {one.category_id for one in chosen(targets)}
            counts = collections.Counter(
                one.image_id for one in targets.annotations.values() if one.category_id in shown
            )
            open_photo(page, targets, counts.most_common(1)[0][0])
            page.wait_for_timeout(1000)  # the masks are drawn
            write(page, args.out / "app_photo.jpg")


def chosen(targets: CocoDataset) -> list[CocoAnnotation]:
    """The largest objects of the classes that have most, one a photo."""
    by_class: dict[int, dict[int, CocoAnnotation]] = {}
    for one in sorted(targets.annotations.values(), key=lambda one: one.bbox[2] * one.bbox[3]):
        by_class.setdefault(one.category_id, {})[one.image_id] = one
    most = sorted(by_class.values(), key=len)[-CLASSES:]
    return [one for found in most for one in list(found.values())[-SHOTS:]]


def open_photo(page: Page, targets: CocoDataset, image_id: int) -> None:
    """Open a photo and wait until clicks are answered."""
    name = targets.images[image_id].file_name.split("/")[-1]
    page.locator("#photos .open").filter(has=page.get_by_text(name, exact=True)).click()
    expect(page.locator("#stage-status")).to_contain_text("ready", timeout=_WITHIN)


def show(page: Page, targets: CocoDataset, annotation: CocoAnnotation) -> None:
    """Make an object a reference of its class by a box."""
    open_photo(page, targets, annotation.image_id)
    at = page.locator("#overlay").bounding_box()
    assert at is not None
    scale = at["width"] / targets.images[annotation.image_id].width
    x, y, width, height = (value * scale for value in annotation.bbox)
    page.mouse.move(at["x"] + x, at["y"] + y)
    page.mouse.down()
    page.mouse.move(at["x"] + x + width, at["y"] + y + height, steps=3)
    page.mouse.up()
    page.wait_for_selector("#choices button")
    page.fill("#class-name", targets.categories[annotation.category_id].name)
    page.click("#add")
    expect(page.locator("#stage-status")).to_contain_text("reference added", timeout=_WITHIN)
    page.keyboard.press("Escape")


def write(page: Page, path: Path) -> None:
    """What the window shows, as a JPEG."""
    save_jpeg(path, np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")))


if __name__ == "__main__":
    main()
