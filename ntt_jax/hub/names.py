"""Names of published models, and what a name or path that a user gives can mean. Needs neither JAX nor a network.

Addresses, sizes and sha256 are those of the files that Meta publishes; both models are under the Apache licence 2.0.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import show_path

DEFAULT_SAM2 = "sam2_hiera_large"
DEFAULT_DINOV2 = "dinov2_vitl14"
"""The models of the paper."""

LICENCE = "Apache-2.0"
PACKAGED = ("sam2_ntt_small", "dinov2_ntt_small")
"""Small models that come with the package, trained on made scenes (docs/small_models.md): for trying things out."""
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".json")
_KINDS = {"sam2": "SAM 2", "dinov2": "DINOv2"}


@dataclass(frozen=True)
class Published:
    """A published model.

    repository: its id on the Hugging Face Hub. meta_path: Meta's file below `META_URL`. sha256, size: of that file,
    None where nothing is on record. megabytes: about how much is downloaded. aliases: other names that people know.
    given: configuration fields that the tensors do not show, for models of no published size.
    """

    name: str
    repository: str
    meta_path: str
    megabytes: int
    sha256: str | None = None
    size: int | None = None
    aliases: tuple[str, ...] = ()
    given: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """`sam2` or `dinov2`."""
        return _kind(self.name)


@dataclass(frozen=True)
class Repository:
    """A model of the Hugging Face Hub that is none of the published ones: `owner/name` or `owner/name@revision`."""

    id: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """As a user writes it."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def _kind(name: str) -> str:
    return "sam2" if name.startswith("sam2") else "dinov2"


def _sam2() -> list[Published]:
    sha256 = {
        "sam2_hiera_tiny": "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
        "sam2_hiera_small": "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
        "sam2_hiera_base_plus": "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
        "sam2_hiera_large": "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
        "sam2.1_hiera_tiny": "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        "sam2.1_hiera_small": "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        "sam2.1_hiera_base_plus": "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        "sam2.1_hiera_large": "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    }
    sizes = {"tiny": ("t", 156), "small": ("s", 184), "base_plus": ("b+", 324), "large": ("l", 898)}
    out = []
    for version, date in (("sam2", "072824"), ("sam2.1", "092824")):
        for size, (letter, megabytes) in sizes.items():
            name = f"{version}_hiera_{size}"
            out.append(
                Published(
                    name,
                    f"facebook/{version}-hiera-{size.replace('_', '-')}",
                    f"segment_anything_2/{date}/{name}.pt",
                    megabytes,
                    sha256[name],
                    897_952_466 if name == "sam2_hiera_large" else None,
                    (f"{version}_{letter}", f"{version}_hiera_{letter}", f"{version}_{size}"),
                )
            )
    return out


def _dinov2() -> list[Published]:
    out = []
    sizes = {"s": ("small", 88), "b": ("base", 346), "l": ("large", 1218), "g": ("giant", 4546)}
    for registers in (False, True):
        for letter, (size, megabytes) in sizes.items():
            plain = f"dinov2_vit{letter}14"
            name = f"{plain}_reg4" if registers else plain
            known = name == "dinov2_vitl14"
            out.append(
                Published(
                    name,
                    f"facebook/dinov2-with-registers-{size}" if registers else f"facebook/dinov2-{size}",
                    f"dinov2/{plain}/{name}_pretrain.pth",
                    megabytes,
                    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428" if known else None,
                    1_217_586_395 if known else None,
                    (f"{plain}_reg", f"dinov2_with_registers_{size}") if registers else (f"dinov2_{size}",),
                )
            )
    return out


PUBLISHED: dict[str, Published] = {model.name: model for model in [*_sam2(), *_dinov2()]}
"""Every published model, by name."""


def parse(name_or_path: str | os.PathLike[str], kind: str | None = None) -> Path | Published | Repository:
    """What a user means: a file or folder that exists, a published model, or a repository of the Hub.

    A path that exists is taken for that, whatever it is called. Aliases, Hub ids of published models and other
    spellings (`SAM2-Hiera-Large`) are understood.

    Args:
        name_or_path: as given.
        kind: "sam2" or "dinov2", if only that will do.

    Raises:
        InputError: neither an existing path nor a name; says which names are close. Or a model of the other kind.
    """
    text = os.fspath(name_or_path)
    if not text or not text.isprintable():
        raise InputError(f"expected a model's name or a checkpoint's path, found {text!a:.80}")
    path = Path(text).expanduser()
    if path.exists():
        return path
    known = packaged_path(text) if text in PACKAGED else find(text)
    if known is not None:
        found = _kind(text) if isinstance(known, Path) else known.kind
        if kind not in (None, found):
            raise InputError(f"{text}: is a {_KINDS[found]} model, expected {_KINDS[str(kind)]}")
        return known
    if isinstance(name_or_path, str) and (repository := _repository(text)):
        return repository
    raise _unknown(text, kind)


def packaged_path(name: str) -> Path:
    """The checkpoint of a model of `PACKAGED`; its configuration lies beside it."""
    return Path(__file__).resolve().parents[1] / "assets" / f"{name}.pt"


def find(text: str) -> Published | None:
    """The published model of this name, alias, Hub id or file name, in any spelling; None if there is none."""
    wanted = _plain(text)
    for model in PUBLISHED.values():
        known = (model.name, model.repository, *model.aliases, Path(model.meta_path).stem)
        if wanted in map(_plain, known):
            return model
    return None


def _plain(text: str) -> str:
    return text.lower().replace("-", "_").replace("base+", "base_plus")


def _repository(text: str) -> Repository | None:
    match = re.fullmatch(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@(\w[\w./-]{0,199}))?", text)
    if match is None or ".." in text or text.endswith(CHECKPOINT_SUFFIXES) or text.startswith((".", "~")):
        return None
    return Repository(match[1], match[2])


def _unknown(text: str, kind: str | None) -> InputError:
    if len(Path(text).parts) > 1 or text.endswith(CHECKPOINT_SUFFIXES):
        return InputError(f"{show_path(text)}: there is no such file or folder")
    return InputError(
        f"{show_path(text)}: there is no such file or folder, and no model of this name{suggestion(text, kind)}"
    )


def suggestion(text: str, kind: str | None = None) -> str:
    """`; did you mean ...?`, or where the names are listed."""
    models = [model for model in PUBLISHED.values() if kind in (None, model.kind)]
    spellings = {_plain(name): m.name for m in models for name in (m.repository, *m.aliases, m.name)}
    spellings |= {name: name for name in PACKAGED if kind in (None, _kind(name))}
    close = dict.fromkeys(
        spellings[name] for name in difflib.get_close_matches(_plain(text), spellings, n=5, cutoff=0.6)
    )
    if close:
        return f"; did you mean {' or '.join(list(close)[:3])}?"
    return "; `ntt-jax weights list` shows all"
