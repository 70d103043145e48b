"""The longer commands of `python -m interp`. Each declares its arguments without importing torch."""
