"""The page in a real Chromium, on made scenes with the small trained models, from a folder of photos to an export."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from contrast import assert_legible
from PIL import Image

pytest.importorskip("fastapi")

from ntt_jax.datasets.coco import load_coco
from ntt_jax.demo.demo import convert_checkpoints, make_benchmark
from ntt_jax.images.rle import decode_rle
from ntt_jax.loading import load_dinov2, load_sam2
from ntt_jax.segmenter.segmenter import Segmenter

playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package drives the browser")
CHROMIUM = os.environ.get("NTT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
TOKEN = "a-token-for-the-tests"
HOSTILE = '<img src=x onerror="window.hacked=1">'
SCENES, CLASSES, SHOTS = 10, 3, 1
PHOTOS = SCENES + 2
LEAST = 0.3  # low, so that there are false positives to make negatives of
WITHIN = 180_000  # ms; the machine may be busy


class Program:
    """`ntt-jax app` over a folder, as its own process."""

    def __init__(self, folder, weights, token):
        self.command = [
            sys.executable,
            "-m",
            "ntt_jax.cli",
            "app",
            str(folder),
            "--points-per-side",
            "16",
            "--cores",
            "1",
        ]
        self.command += ["--sam2", str(weights[0]), "--dinov2", str(weights[1]), "--no-browser"]
        self.command += ["--token-file", str(token), "--port"]
        self.port, self.process = "0", None

    def start(self):
        self.process = subprocess.Popen(
            [*self.command, self.port], stdout=subprocess.PIPE, text=True, env=self.environment
        )
        line = self.process.stdout.readline()
        self.port = re.search(r":(\d+)/\?token=", line)[1]
        return line.split()[1]

    def end(self, sign):
        self.process.send_signal(sign)
        self.process.stdout.close()
        return self.process.wait()

    @property
    def environment(self):
        """Programs are compiled quickly, and run for a short time only."""
        flags = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
        return os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos, one of them with a hostile name and one that is none, their annotations, weights, and the program."""
    base = tmp_path_factory.mktemp("app page")
    dataset = make_benchmark(base, 0, SCENES, 1).targets
    folder = base / "targets" / "images"
    Image.new("RGB", (60, 40), (90, 90, 90)).save(folder / f"{HOSTILE}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    weights = convert_checkpoints(base / "weights")
    (base / "token").write_text(TOKEN + "\n")
    program = Program(folder, weights, base / "token")
    yield folder, dataset, weights, program
    if program.process.poll() is None:
        program.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    """Opens the page; afterwards there must have been no message, no error and no request to elsewhere."""
    problems, folder = [], tmp_path_factory.mktemp("door")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])

        def opened(url, width=1280, height=900):
            page = browser.new_context(viewport={"width": width, "height": height}).new_page()
            page.set_default_timeout(WITHIN)
            home = url.split("?")[0]
            page.on("console", lambda m: None if "ERR_CONNECTION" in m.text else problems.append(m.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            ours = (home, "data:", "blob:", folder.as_uri())
            page.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
            # As the program opens it: by a file, which is another site to the browser.
            door = folder / "open.html"
            door.write_text(f'<meta http-equiv="refresh" content="0; url={url}">')
            page.goto(door.as_uri())
            page.wait_for_url(home)
            return page

        yield opened
        browser.close()
    assert problems == []


def say(page, selector, text):
    playwright.expect(page.locator(selector)).to_have_text(re.compile(text), timeout=WITHIN)


def open_photo(page, name):
    page.locator("#photos .open").filter(has=page.get_by_text(name, exact=True)).click()
    say(page, "#stage-status", "ready")


def move_slider(page, place, value):
    slider = page.locator("#classes > li").nth(place).locator("input[type=range]")
    with page.expect_response(lambda answer: "/v1/thresholds" in answer.url):
        slider.fill(str(value))


def drag_box(page, box, scale):
    at = page.locator("#overlay").bounding_box()
    x, y, width, height = (value * scale * at["width"] for value in box)
    page.mouse.move(at["x"] + x, at["y"] + y)
    page.mouse.down()
    page.mouse.move(at["x"] + x + width, at["y"] + y + height, steps=3)
    page.mouse.up()


def references(dataset):
    """Annotations to show: of the first classes that have enough, with their photo's name."""
    by_class = {}
    for annotation in dataset.annotations.values():
        by_class.setdefault(annotation.category_id, []).append(annotation)
    chosen = [found[:SHOTS] for found in by_class.values() if len(found) >= SHOTS + 2][:CLASSES]
    assert len(chosen) == CLASSES
    return chosen


def test_from_a_folder_of_photos_to_an_export(world, open_page):
    folder, dataset, weights, program = world
    chosen = references(dataset)
    names = [HOSTILE, "second class", "third class"]
    page = open_page(program.start())
    assert TOKEN not in page.url
    seconds = []
    playwright.expect(page.locator("#steps")).to_be_visible()

    for name, annotations in zip(names, chosen, strict=True):
        for annotation in annotations:
            image = dataset.images[annotation.image_id]
            open_photo(page, image.file_name.split("/")[-1])
            started = time.monotonic()
            drag_box(page, annotation.bbox, 1 / image.width)
            page.wait_for_selector("#choices button")
            seconds.append(time.monotonic() - started)
            page.fill("#class-name", name)
            page.click("#add")
            say(page, "#stage-status", "reference added")
            page.keyboard.press("Escape")
    print("clicks answered after", [f"{s:.2f}" for s in seconds])
    shown = load_coco(folder / "ntt-jax" / "references.json")
    assert [category.name for category in shown.categories.values()] == names
    for kept, given in zip(shown.annotations.values(), [one for row in chosen for one in row], strict=True):
        assert overlap(shown.mask(kept), dataset.mask(given)) > 0.6

    page.click("#find")  # killed in the middle; nothing is lost
    say(page, "#progress", r"Searching: [1-9]")
    program.end(signal.SIGKILL)
    say(page, "#message", "does not answer")
    program.start()
    say(page, "#photos li:first-child .count", r"reference|found|^$")
    playwright.expect(page.locator("#message")).to_be_hidden(timeout=WITHIN)
    page.click("#find")
    say(page, "#progress", f"Done: {PHOTOS} of {PHOTOS}")

    for place in range(CLASSES):
        move_slider(page, place, LEAST)
    before = found_of(folder, weights)
    wrong = false_positives(dataset, before, names, chosen)
    assert len(wrong) >= 2, "the scenes are too easy for this test"
    for name, class_name, place in wrong[:2]:
        open_photo(page, name)
        page.locator("#here-detections .row").nth(place).get_by_text("Wrong").click()
        say(page, "#stage-status", "negative added")
        say(page, "#here-detections", "Take back")
        page.keyboard.press("Escape")
        assert class_name in names
    say(page, "#progress", f"{PHOTOS - 1} photos not searched with the references of now")
    page.click("#find")
    say(page, "#progress", f"Done: {PHOTOS} of {PHOTOS}")
    after = found_of(folder, weights)
    assert len(false_positives(dataset, after, names, chosen)) < len(wrong)

    move_slider(page, 1, 0.6)
    page.get_by_role("button", name="COCO").click()
    say(page, "#exported", "Written to")
    exported = load_coco(next((folder / "ntt-jax" / "exports").rglob("instances*.json")))
    least = {name: 0.6 if name == names[1] else LEAST for name in names}
    written = {name: [] for name in [*after, f"{HOSTILE}.png"]}
    for annotation in exported.annotations.values():
        name = exported.categories[annotation.category_id].name
        written[exported.images[annotation.image_id].file_name].append((name, exported.mask(annotation)))
    assert sum(map(len, written.values()))
    for name, one in after.items():
        rows = [row for row in range(len(one)) if one.scores[row] >= least[one.class_names[row]]]
        assert [kind for kind, _ in written[name]] == [one.class_names[row] for row in rows]
        # Another process, with another number of cores: single pixels at the edges may differ.
        for (_, mask), row in zip(written[name], rows, strict=True):
            assert overlap(mask, decode_rle(one.rles[row])) > 0.98
    assert page.evaluate("() => window.hacked === undefined")

    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert_legible(page)
        open_photo(page, wrong[0][0])
        assert page.evaluate("() => document.getElementById('editor').scrollWidth") <= width
        assert_legible(page)
        page.keyboard.press("Escape")

    by_keyboard(page, dataset, chosen[1][0])
    windows(page, open_page, program)
    # Interrupted, with everything saved. (Background jobs of a shell ignore SIGINT: there it ends as asked.)
    assert program.end(signal.SIGINT) == (0 if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else 130)


def by_keyboard(page, dataset, annotation):
    """A reference with no pointer at all."""
    count = page.locator("#classes .counts").nth(1).inner_text()
    image = dataset.images[annotation.image_id]
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("#photos .open").filter(has=page.get_by_text(image.file_name.split("/")[-1], exact=True)).focus()
    page.keyboard.press("Enter")
    say(page, "#stage-status", "ready")
    page.locator("#stage").focus()
    x, y, wide, high = annotation.bbox
    side = max(image.width, image.height)
    for offset, keys in (
        ((x + wide / 2 - image.width / 2) / side, ("ArrowLeft", "ArrowRight")),
        ((y + high / 2 - image.height / 2) / side, ("ArrowUp", "ArrowDown")),
    ):
        for _ in range(round(100 * abs(offset))):
            page.keyboard.press(keys[offset > 0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#choices button")
    page.keyboard.press("2")
    playwright.expect(page.locator("#choices button").nth(1)).to_have_attribute("aria-pressed", "true")
    page.locator("#class-name").focus()
    page.keyboard.type("second class")
    page.keyboard.press("Enter")
    say(page, "#stage-status", "reference added")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#classes .counts").nth(1)).not_to_have_text(count, timeout=WITHIN)


def windows(page, open_page, program):
    """Two windows on one project see each other's changes."""
    other = open_page(f"http://127.0.0.1:{program.port}/?token={TOKEN}", 390, 844)
    counts = page.locator("#classes .counts").nth(2).inner_text()
    playwright.expect(other.locator("#classes .counts").nth(2)).to_have_text(counts)
    other.locator("#classes > li").nth(2).locator("summary").click()
    other.locator("#classes > li").nth(2).get_by_text("Remove").first.click()
    playwright.expect(page.locator("#classes .counts").nth(2)).not_to_have_text(counts, timeout=WITHIN)


def found_of(folder, weights):
    """What the package itself finds in the photos with the project's memory, by the names of the photos."""
    from ntt_jax.demo.demo import SMALL_DETECT

    models = load_sam2(weights[0]), load_dinov2(weights[1])
    segmenter = Segmenter.load(folder / "ntt-jax" / "memory.safetensors", *models, SMALL_DETECT)
    paths = sorted(path for path in folder.glob("*.png") if path.name != f"{HOSTILE}.png")
    return {path.name: found for path, found in zip(paths, segmenter.predict(paths), strict=True)}


def false_positives(dataset, found, names, chosen):
    """Photo, class and place of the detections from LEAST on that lie on no object of their class."""
    categories = {name: rows[0].category_id for name, rows in zip(names, chosen, strict=True)}
    objects = {}
    for annotation in dataset.annotations.values():
        name = dataset.images[annotation.image_id].file_name.split("/")[-1]
        objects.setdefault((name, annotation.category_id), []).append(dataset.mask(annotation))
    wrong = []
    for photo, one in found.items():
        counted = [row for row in range(len(one)) if one.scores[row] >= LEAST]
        for place, row in enumerate(counted):
            there = objects.get((photo, categories[one.class_names[row]]), [])
            if not any(overlap(decode_rle(one.rles[row]), mask) > 0.5 for mask in there):
                wrong.append((photo, one.class_names[row], place))
    return wrong


def overlap(one, other):
    return np.logical_and(one, other).sum() / max(1, np.logical_or(one, other).sum())
