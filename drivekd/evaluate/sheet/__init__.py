"""The score sheet of an evaluation: sheet.md and one self-contained sheet.html, for one run or several beside each other."""
