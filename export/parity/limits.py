"""How far a graph may be from the model, by precision: both limits of the parity table.

What one layer may add is another question, asked when a graph has failed: bisect.py.
"""

from __future__ import annotations

# Of any single value, as a share of max(1, its output's largest magnitude); a bundle keeps it as GraphSpec.atol. fp32:
# docs/design.md, "Exactness and tolerances"; measured 3e-6 on random weights. The others: .003, .15 and .9 on tiny random models
# with sharp attention, which amplifies rounding; 2e-4, .02 and .07 on the demo's trained models.
ATOL = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5, "int4": 1.0}

# Of a whole output: its root mean square error as a share of its root mean square. Measured on the demo's trained student: fp16
# 7e-4, int8 .04, int4 .18; blocks and layers differ, hence the room. In fp32 every token must agree instead.
RMS_LIMITS = {"fp16": 0.01, "int8": 0.3, "int4": 0.6}
