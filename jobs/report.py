"""`boom-ray report` as a script, for `ray job submit --working-dir . -- python jobs/report.py ...`."""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
