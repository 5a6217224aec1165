"""`boom-ray drift` as a script, for `ray job submit --working-dir . -- python jobs/drift.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["drift", *sys.argv[1:]])
