"""Every family of the table, tiny and random: what the table and the proofs are tested on."""

from tests.families.cases import FAMILIES, Family, auto_class, build

__all__ = ["FAMILIES", "Family", "auto_class", "build"]
