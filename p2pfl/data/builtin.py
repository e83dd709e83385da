"""Data sets that come with scikit-learn: small, always there, no download.

scikit-learn is imported inside the functions that need it: it takes 0.7 s and 70 MB per process, and a node that reads
a file of its own never needs it.
"""

from __future__ import annotations

import numpy as np

from p2pfl.data.dataset import Dataset, Numbers, Recipe, Samples, as_float32, mean_and_sd, plain, split, validate


def digits(test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Load handwritten digits.

    Source: Alpaydin and Kaynak (1998), UCI.

    Args:
        test_fraction: rows of the set that are tested on, > 0 and < 1.
        seed: of the split, >= 0.

    Returns:
        1797 rows, x [N, 64] float32 in 0..1, 10 classes; split at random, stratified by class.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import p2pfl
        >>> p2pfl.data.digits().test.x.shape
        (359, 64)
    """
    from sklearn.datasets import load_digits  # here: see the head of the module

    found = load_digits()
    x, y = as_float32(found.data / 16), found.target.astype(np.int32)
    in_test = split(y, None, test_fraction, seed)
    dataset = Dataset(
        train=Samples(x[~in_test], y[~in_test]),
        test=Samples(x[in_test], y[in_test]),
        classes=tuple(str(name) for name in found.target_names),
        features=tuple(str(name) for name in found.feature_names),
        recipe=Recipe("arrays", {}, Numbers(((0.0,),), ((16.0,),))),
    )
    validate(dataset, "digits")
    return dataset


def breast_cancer(test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Load breast cancer Wisconsin, diagnostic.

    Source: Street et al. (1993), UCI.

    Args:
        test_fraction: rows of the set that are tested on, > 0 and < 1.
        seed: of the split, >= 0.

    Returns:
        569 rows, x [N, 30] float32, 2 classes; standardised with the mean and standard deviation of the train part,
        split at random, stratified by class.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import p2pfl
        >>> p2pfl.data.breast_cancer().train.x.shape
        (455, 30)
    """
    from sklearn.datasets import load_breast_cancer  # here: see the head of the module

    found = load_breast_cancer()
    y = found.target.astype(np.int32)
    in_test = split(y, None, test_fraction, seed)
    mean, sd = mean_and_sd(found.data[~in_test])
    x = as_float32((found.data - mean) / sd)
    dataset = Dataset(
        train=Samples(x[~in_test], y[~in_test]),
        test=Samples(x[in_test], y[in_test]),
        classes=tuple(str(name) for name in found.target_names),
        features=tuple(str(name) for name in found.feature_names),
        recipe=Recipe("arrays", {}, Numbers(plain(mean[None]), plain(sd[None]))),
    )
    validate(dataset, "breast_cancer")
    return dataset
