"""Glauber dynamics of a Hopfield memory: spin updates per second beside a compiled loop (numba), in one process.

Both keep the K overlaps of each replica, update the sites of every sweep in a new random order and start from a
pattern; the quality is the mean overlap they end with. One thread each: run with OMP_NUM_THREADS=1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from timing import race, table

from physml.hopfield.spins.glauber import Dense, glauber
from physml.hopfield.spins.patterns import overlaps, random_patterns

try:
    import numba  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise SystemExit("pip install numba to run the reference") from error

SWEEPS, TEMPERATURE = 20, 0.3


@numba.njit(fastmath=True)
def reference(patterns, spins, sweeps, temperature, seed):
    """patterns (N, K) and spins (replicas, N); each replica on its own, overlaps updated when a spin flips."""
    np.random.seed(seed)  # noqa: NPY002, the generator that numba compiles
    n, k = patterns.shape
    sites = np.arange(n)
    total = np.zeros(k, np.float32)
    for r in range(spins.shape[0]):
        total[:] = 0
        for i in range(n):
            for mu in range(k):
                total[mu] += patterns[i, mu] * spins[r, i]
        for _ in range(sweeps):
            for j in range(n - 1, 0, -1):
                other = np.random.randint(0, j + 1)  # noqa: NPY002
                sites[j], sites[other] = sites[other], sites[j]
            for i in sites:
                row = patterns[i]
                field = np.float32(0)
                for mu in range(k):
                    field += row[mu] * total[mu]
                field = field / n - k / n * spins[r, i]
                chance = 1 / (1 + math.exp(-2 * field / temperature))
                new = np.float32(1 if np.random.random() < chance else -1)  # noqa: NPY002
                if new != spins[r, i]:
                    change = new - spins[r, i]
                    for mu in range(k):
                        total[mu] += row[mu] * change
                    spins[r, i] = new
    return spins


def contest(n, k, replicas):
    """Nanoseconds per spin update and final overlaps of both."""
    patterns = random_patterns(k, n, key=jax.random.key(0))
    start = jnp.broadcast_to(patterns[0][None, :], (replicas, n))
    rows, first = np.asarray(patterns.T).copy(), np.asarray(start).copy()
    last = {}

    def ours():
        out = glauber(
            Dense(patterns), start, SWEEPS, temperature=TEMPERATURE, key=jax.random.key(1), save_every=SWEEPS,
            observe=jax.tree_util.Partial(overlaps, patterns[:1]),
        )  # fmt: skip
        last["physml"] = float(jnp.mean(out.observed))
        return out.spins

    def theirs():
        out = reference(rows, first.copy(), SWEEPS, TEMPERATURE, 1)
        last["numba"] = float(np.mean(out @ rows[:, 0]) / n)
        return out

    best = race({"physml": ours, "numba": theirs}, rounds=7)
    return {name: seconds / (SWEEPS * n * replicas) * 1e9 for name, seconds in best.items()}, last


def main():
    rows = []
    for n, k, replicas in ((500, 25, 64), (500, 50, 64), (500, 50, 256), (1000, 100, 128), (500, 50, 1)):
        cost, m = contest(n, k, replicas)
        rows.append((
            f"{n}, {k}, {replicas}", f"{cost['physml']:.1f}", f"{cost['numba']:.1f}",
            f"{cost['numba'] / cost['physml']:.2f}", f"{m['physml']:.3f}", f"{m['numba']:.3f}",
        ))  # fmt: skip
    header = ("N, K, replicas", "physml ns", "numba ns", "numba / physml", "overlap physml", "overlap numba")
    table("Glauber dynamics, time per spin update", rows, header)
    # The cost of an update against K, which should grow as its first power.
    ks = [50, 100, 200, 400]
    costs = [contest(500, k, 64)[0]["physml"] for k in ks]
    power = np.polyfit(np.log(ks), np.log(costs), 1)[0]
    print(f"\nns per update at K = {ks}: {[round(c, 1) for c in costs]}, power {power:.2f}")


if __name__ == "__main__":
    main()
