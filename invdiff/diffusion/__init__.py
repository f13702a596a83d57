"""The forward process: noise schedules, levels, what a network predicts, and how its errors are weighed."""
