"""What the lenses cost, beside nnterp, nnsight, transformers and TransformerLens: `python -m benchmarks.lenses`."""
