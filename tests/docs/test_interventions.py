"""The page on interventions has every operation, with its values and parameters."""

from __future__ import annotations

import re

from interp.interventions import OPERATIONS
from tests.docs.test_pages import table

FORMS = {"numbers": "tensor", "as numbers": "tensor", "a file": "file", "in a file": "file", "another run": "run"}


def test_the_table_of_operations() -> None:
    rows = {name: row for row in table("interventions.md", "Operations") for name in re.findall(r"`(\w+)`", row[0])}
    assert list(rows) == list(OPERATIONS)
    for name, operation in OPERATIONS.items():
        _, _, value, parameters = rows[name]
        found = {form for words, form in FORMS.items() if words in value}
        assert (set(operation.takes) == found) or (value == "any" and len(operation.takes) == 3), name
        assert set(operation.parameters) <= set(re.findall(r"`(\w+)`", parameters)), name
