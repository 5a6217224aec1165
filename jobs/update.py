"""`boom-ray update` as a script, for `ray job submit --working-dir . -- python jobs/update.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["update", *sys.argv[1:]])
