"""What is wrong with a file of records, and what two files share."""
