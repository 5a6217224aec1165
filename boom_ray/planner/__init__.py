"""The planner: what a run costs on a cluster, before it is started, and what failures do to it."""
