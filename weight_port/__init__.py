"""Weights of SAM 2, DINOv2 and DINOv3 between PyTorch checkpoints and this project's models.

On the command line: `python -m weight_port --help`. In Python: `convert_state_dict` and `export_state_dict` for state
dicts in memory, `convert` and `export` for files. Imported on first use, so that `--help` does not start JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weight_port.port import convert, convert_state_dict, export, export_state_dict

__all__ = ["convert", "convert_state_dict", "export", "export_state_dict"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'weight_port' has no attribute {name!r}")
    from weight_port import port

    return getattr(port, name)
