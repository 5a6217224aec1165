"""`boom-ray evaluate` as a script, for `ray job submit --working-dir . -- python jobs/evaluate.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
