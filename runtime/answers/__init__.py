"""What is asked and answered: questions, schemas, grammar, deadlines."""
