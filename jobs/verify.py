"""`boom-ray verify` as a script, for `ray job submit --working-dir . -- python jobs/verify.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
