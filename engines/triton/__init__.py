"""A tritonserver that is started for a test, and ends with it."""
