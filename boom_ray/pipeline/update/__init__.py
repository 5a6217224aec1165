"""Updates: new data enters through one small model, merged with its parent (arXiv 2602.05787, §5).

A fresh copy of the base is trained on the new rows and on a core sample of all rows before them, and the
result is merged with the parent. The parent stays; the child names it. What an update makes on its way lies
under `<root>/updates/<version>/` and is found again by a rerun with the same request, whatever was killed.
"""
