"""Floor 5: parse into settings, call a workflow, turn errors into messages and exit codes."""
