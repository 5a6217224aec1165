"""The runtime: connection to Ray, signals, console, processes and scratch directories."""
