"""Where networks, and the test-time views of each, disagree about the class of a voxel: the mutual information of both.

Each view of each network is a voter with probabilities of its own. The mutual information between the class and the
voter is the entropy of the mean of their probabilities minus the mean of their entropies, in nats (Smith and Gal,
UAI 2018): 0 where all say the same, however unsure they are, and at most the logarithm of the number of voters.
"""

import numpy as np

NAME = "mutual_information"


def entropy(probabilities, sigmoid):
    """(...) nats of (K, ...): of one class of K or, with sigmoid, of K findings that are there or not, added up."""
    found = -_times_log(probabilities).sum(0)
    return found - _times_log(1 - probabilities).sum(0) if sigmoid else found


def _times_log(values):
    """p log p, which is 0 where p is."""
    return values * np.log(np.maximum(values, np.finfo(np.float32).tiny))


def information(mean, sigmoid):
    """(...) nats, from the voters' mean (K + 1, ...) of probabilities and, behind these, of their entropy."""
    return np.maximum(entropy(mean[:-1], sigmoid) - mean[-1], 0)


def views_of(network):
    """The network with each of its test-time views alone."""
    return network.apart() if hasattr(network, "apart") else [network]
