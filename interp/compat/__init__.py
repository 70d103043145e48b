"""The interfaces of systems whose users come to us: names and translation over `interp`, with no science of their own.

What a package here may hold:

* names: the modules, classes and functions that the other system's scripts import;
* arguments: its order and defaults of them, its ways to write prompts, layers and tokens, turned into interp's;
* shapes: interp's values in the axes, dtypes and containers that its scripts expect.

Where values come from: passes from `interp.activations` and `interp.patching`, what is written from the plans of
`interp.lenses`, what is said from `interp.readout`, interventions from `interp.model`. Whether a fast way fits is
theirs to decide. A trace is written out here only where an interface takes what no room does (a plain nnsight model,
a server, a trace that is open); and where two interfaces would repeat each other, the room lacks something.
"""
