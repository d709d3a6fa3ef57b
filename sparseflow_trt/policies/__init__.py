"""From which M on sparse wins: measured points, what they say of others, and the files that are shipped."""
