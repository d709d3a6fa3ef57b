"""The search for crossovers (`autotune`): what to time next, its journal, the policy that comes of it."""
