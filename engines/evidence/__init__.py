"""What an engine runs, and why: from its builder's log and inspector to an outcome for each layer."""
