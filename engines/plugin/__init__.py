"""The 2:4 plugin's library: compiled, found, loaded, and kept with an engine."""
