"""The command line: one file a command; each parses, makes one call, renders, and exits."""
