"""Which test files a run can leave unread: those whose every test is of a kind that `-m` leaves out."""

from __future__ import annotations

import re


def unwanted_kinds(expression: str) -> set[str]:
    """What `-m "not A and not B"` leaves out, whatever else a test is; with "or" or brackets that is not said so simply."""
    terms = [term.split() for term in expression.split(" and ")]
    is_plain = all(len(term) == 1 or (len(term) == 2 and term[0] == "not") for term in terms)
    return {term[1] for term in terms if len(term) == 2} if is_plain else set()


def kinds_of_all_tests(source: str) -> set[str]:
    """The markers in a test file's `pytestmark`."""
    found = re.search(r"^pytestmark = (.+?)$(?!\n[ \]])", source, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"pytest\.mark\.(\w+)", found[1])) if found else set()
