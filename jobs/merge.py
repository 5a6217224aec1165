"""`boom-ray merge` as a script, for `ray job submit --working-dir . -- python jobs/merge.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
