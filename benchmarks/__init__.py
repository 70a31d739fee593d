"""One script a claim; README.md says what each is. From the repository's root: python -m benchmarks.runtime.triad ...

Not a namespace: a peer's environment may hold another package of this name, which would hide it.
"""
