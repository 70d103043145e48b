"""What an experiment asks of a model: tasks that make prompts, targets and labels."""
