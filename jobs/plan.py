"""`boom-ray plan` as a script, for `ray job submit --working-dir . -- python jobs/plan.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
