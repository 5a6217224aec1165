"""Evaluation: scores of models on local tasks and on mteb's, measured over the cluster and cached."""
