"""Which way imports run: the contracts of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_rooms_import_downwards_only():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_room_of_images_still_has_what_it_had_as_a_module():
    code = (
        "import sys, ntt_jax.images; assert 'numpy' not in sys.modules; "
        "from ntt_jax.images import open_image_size, read_image, read_index_image; "
        "assert read_image.__module__ == 'ntt_jax.images.reading' and not hasattr(ntt_jax.images, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
