"""`boom-ray reproduce` as a script, for `ray job submit --working-dir . -- python jobs/reproduce.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["reproduce", *sys.argv[1:]])
