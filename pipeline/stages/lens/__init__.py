"""Stage `lens`: the configured lenses over the collected activations, into `lens.zarr`."""
