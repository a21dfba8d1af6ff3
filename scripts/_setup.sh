# Shared by test.sh, demo.sh and .ci/run; to be sourced, not run. Defines `run_tests ARGUMENTS`, and
# `setup_venv FOLDER KIND` which makes the virtual environment FOLDER (if it is not there), installs this project into it
# and leaves $VENV_PYTHON set.
# KIND: demo    the package alone
#       test    the same, the test tools, torch and Meta's own sam2 and dinov2 packages, against which the tests compare
#       latest  the package with the newest JAX it allows and the test tools, without torch
# A second call with nothing changed costs nothing: a stamp inside FOLDER remembers what was installed.
#
# PYTHON           the interpreter to use (default: python3, else the first of python3.14 ... python3.11 that runs)
# NTT_TORCH_INDEX  a package index to take torch from, for example the official PyTorch one of CPU builds. Without it
#                  pip decides, and on Linux that is a CUDA build of several gigabytes.

TORCH_VERSION=2.13.0

# Most tests compile many programs that run for moments: with these XLA_FLAGS that takes less than half as long. What is
# compared with the originals, and what computes for long, is compiled as users compile it.
QUICK_COMPILATION="--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_backend_optimization_level=0"
QUICK_COMPILATION+=" --xla_llvm_disable_expensive_passes=true"
AS_USERS_COMPILE=(tests/golden tests/parity tests/demo/test_demo.py tests/test_sensitivity.py tests/test_tutorial.py)

# Two processes, since most of the time is single-threaded; each takes the next file, in the order of tests/conftest.py.
run_tests() {
  "$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "$@"
}

is_supported_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_supported_python "$PYTHON" && echo "$PYTHON" && return
    echo "PYTHON=$PYTHON does not run or is older than Python 3.11" >&2
    return 1
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    is_supported_python "$candidate" && echo "$candidate" && return
  done
  echo "no Python 3.11 or newer was found; set PYTHON to one" >&2
  return 1
}

# The newest Python that the newest JAX is tested with.
find_newest() {
  local version candidate
  for version in 3.13 3.12; do
    for candidate in "python$version" "$HOME"/.pyenv/versions/"$version"*/bin/python; do
      # A shim on PATH may be there without an interpreter behind it, so it must prove that it runs.
      [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ] &&
        echo "$candidate" && return
    done
  done
  return 1
}

setup_venv() {
  local venv=$1 kind=$2 python key
  VENV_PYTHON=$venv/bin/python
  if ! is_supported_python "$VENV_PYTHON"; then
    python=$(find_python) || return 1
    echo "making the virtual environment $venv with $python"
    rm -rf "$venv"
    "$python" -m venv "$venv" || return 1
  fi
  # The names of the packages count too: an editable installation knows only those that were there.
  key=$( (cat pyproject.toml scripts/_setup.sh; ls -d */__init__.py) | "$VENV_PYTHON" -c '
import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read() + repr((sys.version, os.getcwd())).encode()).hexdigest())') || return 1
  [ "$(cat "$venv/.ntt-setup-$kind" 2>/dev/null)" = "$key" ] && return

  echo "installing into $venv ($kind); the first time takes some minutes"
  # Not compiled to bytecode: the first import does that, of the tenth that is ever imported.
  local pip=("$VENV_PYTHON" -m pip --disable-pip-version-check install -qq --no-compile)
  if [ "$kind" = test ] && [ -n "${NTT_TORCH_INDEX:-}" ]; then
    "${pip[@]}" --index-url "$NTT_TORCH_INDEX" "torch==$TORCH_VERSION" || return 1
  fi
  case $kind in
    demo) "${pip[@]}" -e . || return 1 ;;
    test)
      "${pip[@]}" -e '.[test,bench,docs]' "torch==$TORCH_VERSION" 'setuptools>=77' wheel || return 1
      # The oracles pin versions that cannot be met together, and their builds look for the torch of this environment.
      SAM2_BUILD_CUDA=0 "${pip[@]}" --no-deps --no-build-isolation sam2==1.1.0 dinov2==0.0.1.dev2 lvis==0.5.3 || return 1
      echo "$key" >"$venv/.ntt-setup-demo"
      ;;
    latest) "${pip[@]}" --upgrade --upgrade-strategy eager -e . jax 'pytest>=8' 'pytest-xdist>=3.7' 'hypothesis>=6' || return 1 ;;
    *) echo "setup_venv: unknown kind $kind" >&2 && return 1 ;;
  esac
  echo "$key" >"$venv/.ntt-setup-$kind"
}
