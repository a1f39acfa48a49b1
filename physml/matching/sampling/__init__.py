"""From a field to samples and likelihoods: flows, diffusions, chains."""
