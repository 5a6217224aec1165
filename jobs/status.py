"""`boom-ray status` as a script, for `ray job submit --working-dir . -- python jobs/status.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["status", *sys.argv[1:]])
