"""`boom-ray run` as a script, for `ray job submit --working-dir . -- python jobs/run.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
