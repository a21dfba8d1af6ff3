#!/usr/bin/env bash
# Sets up .venv_newest from nothing with the newest Python found (3.13 or 3.12; PYTHON chooses another) and the newest JAX, and
# passes the tests that need no torch. With the argument `core` only those that a new JAX can break by itself: the pass and
# its parts, recorded outputs, exported programs, and the command line from references to scores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_setup.sh
[ -n "${PYTHON:-}" ] || PYTHON=$(find_newest) || { echo "no Python 3.13 or 3.12 was found; set PYTHON to one" >&2 && exit 1; }
setup_venv .venv_newest latest
"$VENV_PYTHON" -c 'import jax, sys; print("Python", *sys.version_info[:2], "JAX", jax.__version__)'

# Left to scripts/test.sh, because they take minutes and what they rest on is tested here too: what SIGKILL does, training,
# deliberate faults, the page in the browser, the wheel; and what reads and writes files without JAX.
left=(parity cli/test_kill.py cli/test_kill_segment.py demo/test_training.py test_sensitivity.py report/test_page.py test_wheel.py test_imports.py)
left+=(hostile hub reproduce images/test_reading.py test_tutorial.py)
# Compiled as users compile it: the command line, and what has recorded outputs.
whole=(tests/cli/test_commands.py tests/golden)
some=(tests)
[ "${1:-}" != core ] || some=(tests/{compiled,detection,export,memory} tests/test_{pipeline,config,public_names}.py tests/cli/test_cores.py)
XLA_FLAGS=$QUICK_COMPILATION run_tests "${some[@]}" "${left[@]/#/--ignore=tests/}" "${whole[@]/#/--ignore=}"
run_tests "${whole[@]}"
