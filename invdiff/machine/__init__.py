"""The machine that computes: its devices, memory, threads, random numbers and package versions."""
