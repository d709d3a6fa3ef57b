"""What one build leaves in its folder: the records, and how they are read and written."""
