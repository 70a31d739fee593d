"""`drivekd analyze`: which layers of student and teachers to distil, and whether attention or hidden states.

Every curve and rule: docs/choosing-layers.md.

statistics   what is computed of one layer of one batch; the mean cosine between samples from a running sum
curves       one value a layer, summed up over samples
measurement  a checkpoint's forward passes, from which the curves come
picks        from curves to layers, each with its reason
plots        the curves as pictures
run          all of it: analysis.json, which `drivekd train` reads, and a table
"""

from .analysis import analyze

__all__ = ["analyze"]
