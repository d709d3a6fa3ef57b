"""A graph whose types mean the plan's precisions, and graphs that show what the types cost."""
