"""The command line: a command a module, and what they share."""
