"""A language model marks answers by a rubric (optional): its scores stand in columns of their own, beside the accuracy."""
