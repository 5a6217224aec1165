"""`boom-ray lineage` as a script, for `ray job submit --working-dir . -- python jobs/lineage.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["lineage", *sys.argv[1:]])
