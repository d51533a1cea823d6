"""Fuzzing: `python -m tests.fuzz --help`. Whatever comes in, nothing escapes its connection, and nothing is left."""
