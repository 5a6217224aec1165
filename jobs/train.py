"""`boom-ray train` as a script, for `ray job submit --working-dir . -- python jobs/train.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
