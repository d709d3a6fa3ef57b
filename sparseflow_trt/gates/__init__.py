"""A build held to an accepted one, in CI."""
