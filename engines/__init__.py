"""All that touches a GPU or a runtime: engines are built behind one protocol, run, timed and asked."""
