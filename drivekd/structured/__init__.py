"""Records become structured answers: what a student is taught to write, one function of the schema."""
