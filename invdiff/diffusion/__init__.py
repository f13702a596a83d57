"""The forward process: noise schedules, noise levels, what a network predicts, and the weights of its errors."""
