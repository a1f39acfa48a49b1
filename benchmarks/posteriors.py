"""Tuned kernels beside blackjax's on posteriors with answers: effective samples a gradient and a second, and biases.

python benchmarks/posteriors.py                     # the table, a quarter of an hour on two cores; needs blackjax
python benchmarks/posteriors.py --only logistic     # one posterior
python benchmarks/posteriors.py --references        # long runs where there is no closed form, into zoo.json

64 chains, 500 steps of tuning, 1,000 draws each. All samplers are judged by the same estimators on the same quantities
x and x^2; z is the difference from the reference in standard errors, the worst over all quantities: of some 20 numbers
one beyond 3 is rare, of 200 it is not. Seconds are those of a second, equal call: nothing compiles.
"""

import argparse
import json
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import table
from zoo import LONG_RUNS, ZOO, Posterior

from physml import metrics, particles

CHAINS, TUNING, DRAWS = 64, 500, 1000


def ours(make, tuning=TUNING, draws=DRAWS):
    """A sampler: (posterior, x0s, key) -> draws (draws, chains, k), gradients of tuning and of sampling, a chain."""

    def sample(posterior: Posterior, x0s, key):
        tuned = particles.tune(make(posterior.energy), x0s, tuning, key=key)
        out = particles.run_chains(
            tuned.kernel, tuned.state, draws, key=jax.random.fold_in(key, 1), observe=posterior.observe, stats=False
        )
        spent = tuned.history.gradients[tuned.status.step - 1]
        return out.samples, spent, draws * _leaps(tuned.kernel, draws), tuned.status.ok

    return sample


def _leaps(kernel, draws):
    """Mean number of gradients a move."""
    from physml.particles.kernels.hamiltonian import quasirandom_leaps

    if not (kernel.rejects and hasattr(kernel, "length")):
        return 1.0
    return jnp.mean(quasirandom_leaps(jnp.arange(draws, dtype=jnp.int32), kernel.length, kernel.step_size)[0])


def ladder(posterior, x0s, key):
    kernel = particles.tempered(particles.hmc(posterior.energy, 0.3, 5), jnp.geomspace(1.0, 64.0, 8))
    out = particles.run_chains(kernel, x0s, DRAWS, key=key, observe=posterior.observe, stats=False)
    return out.samples, 0.0, DRAWS * 5 * 8, particles.round_trips(out.state).status.ok


def _draw(step, states, key, observe):
    """Draws of many chains of a blackjax kernel."""
    move = jax.vmap(step)

    def one(states, key):
        states, info = move(jax.random.split(key, CHAINS), states)
        return states, (
            jax.vmap(observe)(states.position),
            jnp.mean(getattr(info, "num_integration_steps", jnp.ones(()))),
        )

    return jax.lax.scan(one, states, jax.random.split(key, DRAWS))[1]


def nuts(posterior, x0s, key):
    log_density = lambda u: -posterior.energy(u)
    warm = blackjax.window_adaptation(blackjax.nuts, log_density)

    def adapt(key, x0):
        (state, parameters), info = warm.run(key, x0, TUNING)
        return state, parameters, jnp.sum(info.info.num_integration_steps)

    states, parameters, spent = jax.vmap(adapt)(jax.random.split(key, CHAINS), x0s)

    def one(carry, key):
        states, info = jax.vmap(lambda k, s, p: blackjax.nuts(log_density, **p).step(k, s))(
            jax.random.split(key, CHAINS), carry, parameters
        )
        return states, (jax.vmap(posterior.observe)(states.position), jnp.mean(info.num_integration_steps))

    _, (draws, steps) = jax.lax.scan(one, states, jax.random.split(jax.random.fold_in(key, 1), DRAWS))
    return draws, jnp.mean(spent), jnp.sum(steps), True


def chees(posterior, x0s, key):
    log_density = lambda u: -posterior.energy(u)
    warm = blackjax.chees_adaptation(log_density, CHAINS, mass_matrix_estimation="diagonal")
    (states, parameters), info = warm.run(key, x0s, 0.1, optax.adam(0.025), TUNING)
    kernel = blackjax.dynamic_hmc(log_density, **parameters)
    draws, steps = _draw(kernel.step, states, jax.random.fold_in(key, 1), posterior.observe)
    return draws, jnp.sum(jnp.mean(info.info.num_integration_steps, -1)), jnp.sum(steps), True


def meads(posterior, x0s, key):
    log_density = lambda u: -posterior.energy(u)
    warm = blackjax.meads_adaptation(log_density, CHAINS)
    (states, parameters), _ = warm.run(key, x0s, TUNING)
    kernel = blackjax.ghmc(log_density, **parameters)
    draws, _ = _draw(kernel.step, states, jax.random.fold_in(key, 1), posterior.observe)
    return draws, TUNING, DRAWS, True


def mclmc(posterior, x0s, key):
    """Tuned with one chain, as blackjax does it; then all chains move with what it found."""
    log_density = lambda u: -posterior.energy(u)
    kernel = blackjax.mcmc.mclmc.build_kernel()
    init = lambda x, k: blackjax.mcmc.mclmc.init(x, log_density, k)
    states = jax.vmap(init)(x0s, jax.random.split(key, CHAINS))
    first = jax.tree.map(lambda leaf: leaf[0], states)
    _, found, steps = blackjax.mclmc_find_L_and_step_size(
        kernel, num_steps=10 * TUNING, state=first, rng_key=key, logdensity_fn=log_density
    )
    sampler = blackjax.mclmc(
        log_density, L=found.L, step_size=found.step_size, inverse_mass_matrix=found.inverse_mass_matrix
    )
    move = jax.vmap(sampler.step)
    settle = lambda s, k: (move(jax.random.split(k, CHAINS), s)[0], None)
    states, _ = jax.lax.scan(settle, states, jax.random.split(jax.random.fold_in(key, 2), TUNING))
    draws, _ = _draw(sampler.step, states, jax.random.fold_in(key, 1), posterior.observe)
    return draws, steps / CHAINS + TUNING, DRAWS, True


SAMPLERS = {
    "hmc, tuned": ours(lambda E: particles.hmc(E, 0.1)),
    "microcanonical, adjusted": ours(lambda E: particles.microcanonical(E, adjusted=True)),
    "microcanonical": ours(lambda E: particles.microcanonical(E), tuning=1000),
    "blackjax NUTS": nuts,
    "blackjax ChEES": chees,
    "blackjax MEADS": meads,
    "blackjax MCLMC": mclmc,
}


def judge(posterior, draws):
    """Worst effective sample size of x and x^2, largest |z| of first and second moments, largest R-hat."""
    x = np.asarray(draws, np.float64)
    both = {"first": x, "second": x**2}
    sizes, zs = [], []
    for name, y in both.items():
        size = np.asarray(metrics.ess(y.astype(np.float32)))
        reference = getattr(posterior, name)
        if reference is not None:
            error = np.sqrt(y.reshape(-1, y.shape[-1]).var(0) / np.maximum(size, 1) + reference[1] ** 2)
            zs.append(np.max(np.abs(y.mean((0, 1)) - reference[0]) / error))
        sizes.append(np.nanmin(size))
    return min(sizes), zs, float(np.nanmax(metrics.r_hat(x.astype(np.float32))))


def report(name, posterior, key):
    rows = []
    samplers = SAMPLERS | ({"hmc, tempered": ladder} if name == "mixture" else {})
    x0s = jax.vmap(posterior.start)(jax.random.split(key, CHAINS))
    for sampler, sample in samplers.items():
        # The posterior's functions are constants: a second call compiles nothing.
        call = jax.jit(lambda x0s, key, sample=sample: sample(posterior, x0s, key))
        try:
            jax.block_until_ready(call(x0s, jax.random.key(1)))
            start = time.perf_counter()
            draws, tuning, sampling, ok = jax.block_until_ready(call(x0s, jax.random.key(2)))
            seconds = time.perf_counter() - start
        except Exception as error:
            rows.append((sampler, type(error).__name__, *[""] * 6))
            continue
        size, zs, r_hat = judge(posterior, draws)
        tuning, sampling = float(tuning), float(sampling)
        rows.append((
            sampler, f"{size / (sampling * CHAINS):.4f}", f"{size / seconds:,.0f}", *(f"{z:.1f}" for z in zs),
            f"{r_hat:.3f}", f"{tuning / (tuning + sampling):.2f}", "" if bool(ok) else "not settled",
        ))  # fmt: skip
        print(name, rows[-1], flush=True)
    header = ("", "ess / gradient", "ess / second", "z of mean", "z of square", "R-hat", "tuning", "")
    table(name, rows, header)


def references():
    """Moments of the posteriors without closed forms: 256 chains, 4,000 exact moves each, of tuned HMC."""
    found = json.loads(LONG_RUNS.read_text()) if LONG_RUNS.exists() else {}
    for name, make in ZOO.items():
        posterior = make()
        if posterior.first is not None and name not in found:
            continue
        x0s = jax.vmap(posterior.start)(jax.random.split(jax.random.key(7), 256))
        tuned = particles.tune(particles.hmc(posterior.energy, 0.1), x0s, 1000, key=jax.random.key(8), acceptance=0.9)
        settled = particles.run_chains(tuned.kernel, tuned.state, 500, key=jax.random.key(9), keep=False, stats=False)
        both = lambda u, of=posterior.observe: jnp.stack([of(u), of(u) ** 2])
        out = particles.run_chains(
            tuned.kernel, settled.state, 4_000, key=jax.random.key(10), keep=False, observe=both
        ).check()
        mean, variance, ess = (np.asarray(a, np.float64) for a in (out.stats.mean, out.stats.variance, out.stats.ess))
        error = np.sqrt(variance / ess)
        found[name] = {key: np.stack([mean[i], error[i]]).tolist() for i, key in enumerate(("first", "second"))}
        print(
            name,
            tuned.status,
            "largest R-hat",
            float(np.max(out.stats.r_hat)),
            "least ess",
            float(ess.min()),
            flush=True,
        )
        LONG_RUNS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(ZOO))
    arguments = parser.parse_args()
    if arguments.references:
        references()
    else:
        for name in arguments.only:
            report(name, ZOO[name](), jax.random.key(0))
