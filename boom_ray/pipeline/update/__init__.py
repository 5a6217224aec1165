"""Updates: new data enters through one small model, merged with its parent (arXiv 2602.05787, §5).

A fresh copy of the base is trained on the new rows and on a core sample of all earlier rows, and the result
is merged with the parent. The parent stays, and the child's record names it. Intermediate artifacts of an
update are in `<root>/updates/<version>/`; a rerun with the same request resumes from them.
"""
