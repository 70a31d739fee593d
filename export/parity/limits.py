"""How far a graph may be from the model, by precision: both limits of the parity table.

The model's weights are rounded as the graph's are: what rounding them costs is no matter of parity (language.py). What is left is
what engines add: activations in float16, or in 8 bits within a block.

What one layer may add is another question, asked when a graph has failed: bisect.py.
"""

from __future__ import annotations

# Of any single value, as a share of max(1, its output's largest magnitude); a bundle keeps it as GraphSpec.atol. fp32:
# docs/design.md, "Exactness and tolerances"; measured 3e-6 on random weights. fp16: .003 on tiny random models with sharp
# attention, which amplifies rounding, 2e-4 on the demo's trained models. int4: .9 on such a random model, .06 on SmolLM2-135M.
ATOL = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5, "int4": 1.0}

# Of a whole output: its root mean square error as a share of its root mean square. Measured: fp16 7e-4 on the demo's trained
# student, int8 and int4 .06 on SmolLM2-135M (activations of 8 bits through 30 layers), .44 on a random model with sharp
# attention. In fp32 every token must agree instead.
RMS_LIMITS = {"fp16": 0.01, "int8": 0.3, "int4": 0.6}
