#!/usr/bin/env bash
# Creates all environments, then runs lint, types and tests: `bash tests/run.sh [--slow] [PYTEST ARGUMENT ...]`.
# The environments are the project's, that of an S3 server, that of mergekit, whose merges the tests compare with, and for
# --slow that of the client libraries of endpoints.
# They are in $BOOM_RAY_TEST_HOME, by default .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=${BOOM_RAY_TEST_HOME:-$PWD/.venv}

selection=(-m "not slow")
if [ "${1:-}" = --slow ]; then selection=(); slow=1; shift; fi

environment() {  # NAME PIP-ARGUMENT...; an interrupted installation starts again
    local path="$home/$1"; shift
    [ -e "$path/complete" ] && return
    echo "setting up $path"
    rm -rf "$path"
    python3 -m venv "$path"
    while [ $# -gt 0 ]; do
        # shellcheck disable=SC2086
        "$path/bin/pip" install --quiet --disable-pip-version-check $1
        shift
    done
    touch "$path/complete"
}

environment swift "--only-binary=:all: swift==2.38.3" & swift=$!
environment mergekit "-c cluster/constraints.txt torch" "torch==2.13.0 mergekit==0.1.5" & mergekit=$!
clients="openai langchain-openai langchain-huggingface llama-index-embeddings-openai-like"
clients+=" llama-index-embeddings-text-embeddings-inference haystack-ai huggingface-api-haystack chromadb litellm"
if [ -n "${slow:-}" ]; then environment clients "$clients huggingface_hub"; fi
environment project "-c cluster/constraints.txt torch" "-c cluster/constraints.txt -e .[dev]"
wait $swift && wait $mergekit

export PATH="$home/project/bin:$PATH"
export BOOM_RAY_SWIFT_ENV="$home/swift" BOOM_RAY_MERGEKIT_PYTHON="$home/mergekit/bin/python"
export BOOM_RAY_CLIENTS_PYTHON="$home/clients/bin/python"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true

ruff check .
ruff format --check .
mypy
# Two processes of pytest, each with one thread of torch, so that they do not compete for the cores.
export OMP_NUM_THREADS=1
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
