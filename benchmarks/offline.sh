#!/bin/sh
# For a machine that has Python and JAX for its accelerator, but no network (a cluster's node, say):
#
#   benchmarks/offline.sh fetch 3.12    with a network: collects in .wheels what such a machine lacks
#   benchmarks/offline.sh COMMAND...    there, with .wheels copied along: installs it aside, runs COMMAND
set -eu
cd "$(dirname "$0")/.."

# jmeta's and Brax's dependencies, less JAX's own and optax, orbax, NumPy and SciPy.
lacking="blinker brax docstring_parser Flask flask-cors glfw itsdangerous jaxopt ml_collections mujoco
mujoco-core mujoco-mjx mujoco-studio PyOpenGL tensorboardX trimesh typeguard tyro"

if [ "${1:-}" = fetch ]; then
  python=${2:?"which Python does the other machine have, 3.12 say?"}
  locked=$(for name in $lacking; do grep "^$name==" requirements-lock.txt; done)
  platforms=$(for glibc in 5 12 17 24 27 28 31 34; do printf -- '--platform manylinux_2_%s_x86_64 ' "$glibc"; done)
  # shellcheck disable=SC2086  # lists of words
  exec python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$python" $platforms --platform manylinux2014_x86_64 --dest .wheels $locked
fi

# Within the checkout: in a folder for all, another user could have put code of theirs.
aside=$PWD/.wheels/site
[ -d "$aside" ] || python3 -m pip install --quiet --no-index --no-deps --target "$aside" .wheels/*.whl
PYTHONPATH=$PWD:$aside${PYTHONPATH:+:$PYTHONPATH} exec "$@"
