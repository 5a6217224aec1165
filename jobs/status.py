"""`boom-ray status` as a script: `ray job submit --working-dir . -- python jobs/status.py ...`."""

from boom_ray.cli import job

if __name__ == "__main__":
    job(__file__)
