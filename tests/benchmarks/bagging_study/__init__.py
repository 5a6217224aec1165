"""The bagging study: does merging models of bags beat training one model longer?

sources/         from the files of a package to examples (query, documents), one kind of text a file
inputs.py        pinned packages: downloaded, verified, unpacked; `pins.json` has versions and hashes
examples.py      an example, and the part of the corpus that it is in
tasks.py         which sources are trained on, which choose settings, and which are never seen
corpus.py        training rows and evaluation tasks of all sources, with a fingerprint
arms.py          what is compared
study.py         what all arms have in common: base model, recipes, measurements
arm_run.py       one arm at one seed: tune, train, merge, scale, measure
lines.py         results on disk, one JSON line per arm and seed
environment.py   versions and device of a line
bootstrap.py     intervals over seeds, tasks and queries
contrasts.py     which differences are computed; the primary one
table.py         the table
picture.py       the picture
"""
