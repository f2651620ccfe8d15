"""What a person types: the commands, their output and their exit codes."""
