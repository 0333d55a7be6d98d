"""The linear heads against torch's own optimizer and schedule, one head at a time."""

import numpy as np
import pytest
import torch

from fomo import metrics
from fomo.metrics import heads


def clouds(n=150, classes=3, inputs=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, inputs)) + 0.8 * rng.normal(size=(classes, inputs))[labels], labels


def torch_head(features, labels, rate, first, orders, batch):
    layer = torch.nn.Linear(*first.shape).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(first.T))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
    steps = len(orders) * -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0)
    for order in orders:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                layer(torch.from_numpy(features[chosen])), torch.from_numpy(labels[chosen])
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    return layer.weight.detach().numpy().T, layer.bias.detach().numpy()


def test_each_head_is_what_torch_trains_alone():
    features, labels = clouds()
    found = heads.train(features, labels, 3, epochs=4, seed=3)
    assert len(heads.RATES) == 13 and found.weight.shape == (7, 13, 3)
    first = np.random.default_rng([3, 0]).normal(0, 0.01, (7, 3))
    orders = [np.random.default_rng([3, 1 + epoch]).permutation(150) for epoch in range(4)]
    for place, rate in enumerate(heads.RATES):
        weight, bias = torch_head(features, labels, rate, first, orders, 64)
        np.testing.assert_allclose(found.weight[:, place], weight, atol=1e-10)
        np.testing.assert_allclose(found.bias[place], bias, atol=1e-10)
    logits = features @ found.weight[:, 5] + found.bias[5]
    wanted = torch.from_numpy(logits).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities(features)[5], wanted, atol=1e-12)


def test_the_head_with_the_best_validation_auroc_is_chosen_and_one_that_diverged_is_not():
    features, labels = clouds(300)
    features *= 1e160  # whose squares are infinite: the high rates diverge
    probabilities = heads.train(features[:200], labels[:200], 3, rates=(1e-300, 1e-4, 10.0)).probabilities(
        features[200:]
    )
    best, found = heads.choose(probabilities, labels[200:])
    assert best == 0 and np.isnan(found[2])
    one_hot = np.eye(3, dtype=int)[labels[200:]]
    assert found[0] == metrics.macro_auroc(one_hot, probabilities[0])
    with pytest.raises(ValueError, match="diverged"):
        heads.choose(probabilities[2:], labels[200:])
