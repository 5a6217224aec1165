"""The sections of `tests/benchmarks/gpu.py`: a module each, with a function `run(bench)`."""
