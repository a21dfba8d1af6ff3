"""Names of classes that the literature evaluates on: COCO's and PASCAL VOC's, and the published choices among them."""

from collections.abc import Mapping
from types import MappingProxyType

# The 80 COCO classes by category id, ascending: their positions define the folds of COCO-20i (METHOD section 5).
COCO_CLASSES: Mapping[int, str] = MappingProxyType(
    {
        1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
        9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench",
        16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear",
        24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase",
        34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat",
        40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
        46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
        54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut",
        61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
        72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave",
        79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
        87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
    }
)  # fmt: skip
_NOVEL_IDS = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes of PASCAL VOC in its own order, which is alphabetical; category ids count from 1."""
_VOC_NOVEL = (
    ("bird", "bus", "cow", "motorbike", "sofa"),
    ("aeroplane", "bottle", "cow", "horse", "sofa"),
    ("boat", "cat", "motorbike", "sheep", "sofa"),
)
_NAMES = tuple(COCO_CLASSES.values())
_FOLDS = tuple(_NAMES[fold::4] for fold in range(4))
CLASS_LISTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "novel": tuple(COCO_CLASSES[i] for i in _NOVEL_IDS),
        "base": tuple(name for i, name in COCO_CLASSES.items() if i not in _NOVEL_IDS),
        **{f"fold{fold + 1}": names for fold, names in enumerate(_FOLDS)},
        **{f"coco20i-{fold}": names for fold, names in enumerate(_FOLDS)},
        **{f"voc-novel{split}": names for split, names in enumerate(_VOC_NOVEL, 1)},
        **{
            f"voc-base{split}": tuple(name for name in VOC_CLASSES if name not in names)
            for split, names in enumerate(_VOC_NOVEL, 1)
        },
    }
)
"""Named class lists by category name: few-shot COCO's novel 20 and base 60; the folds of COCO-20i, which papers count
from 0 (coco20i-0) and METHOD from 1 (fold1); the novel five and base fifteen of VOC's three splits."""


def is_coco20i_fold(names: set[str]) -> bool:
    """Whether the classes are exactly those of a COCO-20i fold."""
    return any(names == set(fold) for fold in _FOLDS)
