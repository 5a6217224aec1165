"""The runtime: connection to Ray, signals, console, progress, processes and scratch directories."""
