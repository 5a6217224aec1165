"""Evaluation: models measured on local tasks and on those of mteb, over the cluster."""
