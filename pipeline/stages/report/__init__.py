"""Stage `report`: make one self-contained page about a run, and its figures."""
