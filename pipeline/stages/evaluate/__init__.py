"""Stage `evaluate`: compute statistics of the lenses' readings, and write the tables that hold them."""
