"""Weights of SAM 2 and DINOv2 between PyTorch checkpoints and this project's models.

On the command line: `python -m weight_port --help`. In Python: `convert_state_dict` and `export_state_dict` for state
dicts in memory, `convert` and `export` for files.
"""

from weight_port.port import convert, convert_state_dict, export, export_state_dict

__all__ = ["convert", "convert_state_dict", "export", "export_state_dict"]
