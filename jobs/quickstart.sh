#!/usr/bin/env bash
# From nothing to a merged embedding model on a machine with Python and pip: no GPU, no model hub.
#   bash jobs/quickstart.sh            all-MiniLM-L6-v2 as the base
#   bash jobs/quickstart.sh --qwen3    a tiny Qwen3 with random weights as the base, to show the decoder path
#   bash jobs/quickstart.sh --baseline two sets of bags, each compared with one full-corpus model, in half an hour
#   bash jobs/quickstart.sh --update   new data in three weeks: updates compared with full retraining, in half an hour
# All files are in $BOOM_RAY_HOME, by default .quickstart in this checkout; delete it to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export BOOM_RAY_HOME=${BOOM_RAY_HOME:-$PWD/.quickstart}

case "${1:-}" in
    "") recipe=quickstart base=minilm; corpus=() ;;
    --qwen3) recipe=quickstart-qwen3 base=qwen3; corpus=(--qwen3) ;;
    --baseline) base=baseline; corpus=(--rows 800) ;;
    --update) recipe=quickstart-update base=update; corpus=(--rows 480 --later scipy) ;;
    *) echo "usage: bash jobs/quickstart.sh [--qwen3 | --baseline | --update]" >&2; exit 2 ;;
esac

if [ ! -e "$BOOM_RAY_HOME/venv/complete" ]; then
    echo "installing into $BOOM_RAY_HOME/venv (once, takes minutes)"
    rm -rf "$BOOM_RAY_HOME/venv"
    python3 -m venv "$BOOM_RAY_HOME/venv"
    pip=("$BOOM_RAY_HOME/venv/bin/pip" install --quiet --disable-pip-version-check -c cluster/constraints.txt)
    "${pip[@]}" torch
    "${pip[@]}" -e ".[quickstart]"
    touch "$BOOM_RAY_HOME/venv/complete"
fi
export PATH="$BOOM_RAY_HOME/venv/bin:$PATH" HF_HUB_OFFLINE=1

python jobs/quickstart_corpus.py "$BOOM_RAY_HOME/$base" "${corpus[@]}"
if [ "$base" = update ]; then exec python jobs/quickstart_update.py; fi
if [ "$base" = baseline ]; then
    for recipe in quickstart-80-100 quickstart-20-100; do boom-ray run "jobs/recipes/$recipe.yaml" --baseline; done
    exit
fi
boom-ray run "jobs/recipes/$recipe.yaml"
boom-ray report "$BOOM_RAY_HOME/runs/$recipe"

model="$BOOM_RAY_HOME/runs/$recipe/models/v0001"
cat <<END

Try it:
  . $BOOM_RAY_HOME/venv/bin/activate
  boom-ray embed $model $BOOM_RAY_HOME/$base/texts $BOOM_RAY_HOME/embeddings
  boom-ray serve $model
END
