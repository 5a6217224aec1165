"""Evaluation at the field's standard: mteb's tasks, and local ones of the same types, over the cluster."""
