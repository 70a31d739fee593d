"""Records of every format become one `Sample`; a `Batch` of them feeds a model."""
