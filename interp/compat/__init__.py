"""The interfaces of systems whose users come to us; each thin, over `interp`, with no science of its own."""
