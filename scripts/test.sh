#!/usr/bin/env bash
# Sets up .venv from nothing and runs everything that must pass: ruff, pyright and the tests, those that compare with
# Meta's own PyTorch modules included. Arguments go to pytest: `bash scripts/test.sh tests/cli/test_commands.py -k resume`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_setup.sh
setup_venv .venv test

"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check .
"$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
if [ $# -gt 0 ]; then
  run_tests "$@"
else
  XLA_FLAGS=$QUICK_COMPILATION run_tests tests "${AS_USERS_COMPILE[@]/#/--ignore=}"
  run_tests "${AS_USERS_COMPILE[@]}"
fi
