"""METHOD stage 1, steps 1 to 5, and stage 3, step 1, against what the original PyTorch code made of the same photos."""

import json
import pathlib
import warnings

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ntt_jax.images.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    mask_to_grid,
    reference_crop,
    resize_for_sam,
    sam_input,
)


def polygon_mask(polygons, height, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inside pycocotools: numpy 2's copy keyword
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def test_reference_crops(golden: pathlib.Path):
    data = np.load(golden / "e2e_memory.npz")
    references = json.loads((golden / "e2e_data" / "refs.json").read_text())
    images = {image["id"]: image for image in references["images"]}
    recorded = data["ref_imgs_stride7"].transpose(0, 2, 3, 1)
    grids = data["mem_masks"].reshape(6, 37, 37)
    for index, annotation in enumerate(sorted(references["annotations"], key=lambda a: a["id"])):
        info = images[annotation["image_id"]]
        image = np.asarray(Image.open(golden / "e2e_data" / info["file_name"]).convert("RGB"))
        mask = polygon_mask(annotation["segmentation"], info["height"], info["width"])
        crop, soft = reference_crop(image, mask, annotation["bbox"], 518)
        pixels = crop * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
        # Torch computes tap positions in float32: 518 * 6e-8 of a pixel, times the contrast of neighbours.
        np.testing.assert_allclose(pixels[::7, ::7], recorded[index], rtol=0, atol=3e-5)
        np.testing.assert_allclose(soft, data["ref_masks_518_fp16"][index].astype(np.float32), rtol=0, atol=3e-4)
        np.testing.assert_allclose(mask_to_grid(soft, 37), grids[index], rtol=0, atol=3e-5)


def test_target_image(golden: pathlib.Path):
    data = np.load(golden / "e2e8_china.npz")
    image = np.asarray(Image.open(golden / "e2e_data" / "china.png").convert("RGB"))
    resized = resize_for_sam(image, 1024)
    np.testing.assert_array_equal(
        (resized[::16, ::16].astype(np.float32) / np.float32(255)).transpose(2, 0, 1), data["target_img_stride16"]
    )
    normalised = np.asarray(sam_input(resized[None]))[0]
    np.testing.assert_allclose(
        normalised, (resized / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), rtol=0, atol=1e-6
    )
