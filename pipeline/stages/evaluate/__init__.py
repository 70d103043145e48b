"""Stage `evaluate`: statistics of what the lenses measured, and the tables that hold them."""
