"""The planner: estimates the time, memory, storage and cost of a run on a cluster without running it."""
