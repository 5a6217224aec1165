"""`boom-ray embed` as a script, for `ray job submit --working-dir . -- python jobs/embed.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
