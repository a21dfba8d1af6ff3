"""PASCAL VOC's boxes: `voc/Annotations/NAME.xml` for each photo, and the list `voc/ImageSets/Main/default.txt`.

Boxes are the masks', their corners inclusive and counted from 1, as in VOC. Masks are not in these files.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath
from xml.etree import ElementTree

from ntt_jax.formats.output import Output
from ntt_jax.formats.photo import Classes, Format, Photo
from ntt_jax.text import one_line


def write(output: Output, photos: Iterable[Photo], classes: Classes) -> None:
    """Write a file for each photo, also for those without an object, and the list."""
    listed: list[str] = []
    for photo in photos:
        output.write(f"voc/Annotations/{photo.stem}.xml", annotation(photo, classes.names))
        if photo.stem.isprintable():
            listed.append(f"{photo.stem}\n")
        else:
            output.notes.add("photos whose names do not fit on a line, left out of the list of voc/", photo.name)
    output.write("voc/ImageSets/Main/default.txt", "".join(listed))


def annotation(photo: Photo, class_names: tuple[str, ...]) -> str:
    """The content of a photo's file. Characters that XML does not have become backslash escapes."""
    name = PurePosixPath(photo.name)
    root = ElementTree.Element("annotation")
    _add(root, "folder", str(name.parent) if len(name.parts) > 1 else "")
    _add(root, "filename", photo.file.name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", photo.width), ("height", photo.height), ("depth", 3)):
        _add(size, key, value)
    _add(root, "segmented", 0)
    for label, (x, y, width, height) in zip(photo.detections.labels, photo.boxes.tolist(), strict=True):
        if width == 0:
            continue
        entry = ElementTree.SubElement(root, "object")
        for key, value in (("name", class_names[label]), ("pose", "Unspecified"), ("truncated", 0), ("difficult", 0)):
            _add(entry, key, value)
        box = ElementTree.SubElement(entry, "bndbox")
        for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + width), ("ymax", y + height)):
            _add(box, key, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode") + "\n"


def _add(parent: ElementTree.Element, key: str, value: object) -> None:
    ElementTree.SubElement(parent, key).text = one_line(str(value))


VOC = Format("voc", "one PASCAL VOC XML per photo, with boxes", write)
