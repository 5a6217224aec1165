"""The public Python API: one function per command, exported by `boom_ray`.

Each function checks its arguments, makes paths absolute, connects to Ray if it needs Ray, and returns a typed
result.
"""
