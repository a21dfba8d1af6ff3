"""One entrance to every annotated data set: what kind it is, its own content says."""

from typing import TYPE_CHECKING

from ntt_jax.files import PathLike, read_bytes

if TYPE_CHECKING:
    from ntt_jax.datasets.dataset import CocoDataset


def load_dataset(path: PathLike) -> "CocoDataset":
    """Read annotations of any known kind, checked; the result says by whose rules it is measured (`protocol`).

    A JSON file: COCO's instance annotations, or LVIS's (`coco.parse_coco`). A list of image names in VOC's folders, or
    several as `VOC2007+VOC2012` (`voc.load_voc`).

    Raises `InputError`: one line with the file and what is wrong with it.
    """
    # `coco` itself takes class lists from this package.
    from ntt_jax.datasets.coco import MAX_ANNOTATION_BYTES, parse_coco
    from ntt_jax.datasets.voc import image_lists, load_voc, year_folder

    files = image_lists(path)
    if len(files) > 1:
        return load_voc(path)
    data = read_bytes(path, max_bytes=MAX_ANNOTATION_BYTES, what="annotation file")
    start = data[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1]  # behind what marks an encoding
    if start not in (b"{", b"[") and (str(path).endswith(".txt") or (year_folder(path) / "Annotations").is_dir()):
        return load_voc(path)
    return parse_coco(data, path)
