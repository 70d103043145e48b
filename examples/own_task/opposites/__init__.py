"""A task, a metric and a figure of one's own, a module each: a stage depends on those that it uses."""
