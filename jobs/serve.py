"""`boom-ray serve` as a script, for `ray job submit --working-dir . -- python jobs/serve.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
