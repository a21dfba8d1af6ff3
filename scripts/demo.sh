#!/usr/bin/env bash
# Sets up .venv from nothing and runs `ntt-jax demo`: made-up scenes of classes no model has seen, the small trained
# checkpoints that come with the package, numbers on the terminal and pictures in demo_out. Offline after the installs.
# Arguments go to the demo: `bash scripts/demo.sh --seed 3 --shots 1,5 --out somewhere_else`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_setup.sh
setup_venv .venv demo

"$VENV_PYTHON" -m ntt_jax.cli demo --out demo_out "$@"
