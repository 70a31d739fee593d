"""Answers that are there already, of ours or of others, scored against records: what `drivekd score` does.

1. given_texts: a file of answers, in our format or upstream's.   2. matching: each finds its record.   3. compat: the same by
the rules of DriveLM and DriveBench, in columns of their own.   4. command: all of it behind one call.
"""
