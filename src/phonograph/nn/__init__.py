"""What two model families share and what is easy to get wrong: convolutions, attention, positions, state."""
