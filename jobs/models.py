"""`boom-ray models` as a script, for `ray job submit --working-dir . -- python jobs/models.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["models", *sys.argv[1:]])
