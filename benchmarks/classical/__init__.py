"""Classical references: strategies for bandits and Markov decision processes as plain functions."""
