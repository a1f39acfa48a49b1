r"""Stochastic interpolants: one velocity and one score, a flow and every diffusion beside it.

For each path $x_t = \alpha x_0 + \beta x_1 + \gamma z$ the flow $\dot x = v(t, x)$ and the diffusions
$dx = [v + \epsilon s]\,dt + \sqrt{2\epsilon}\,dW$ have the same law at every t, whatever $\epsilon(t) \ge 0$. Checked in two ways.

1. *Exact fields.* Between Gaussian mixtures v and s are closed. Samples for every path and $\epsilon \in \{0, \tfrac12, 2\}$, constant
   and decaying, are held against the target by the energy distance, beside what two exact samples score.
2. *Learned fields.* v and s are learned by their own losses on the straight path. The flow's exact likelihood gives
   $KL(p_1 | \hat p_1)$, which the diffusion bounds by its Fisher divergence,
   $KL \le \frac{1}{4\epsilon} \int_0^1 E|\hat v - v + \epsilon(\hat s - s)|^2\,dt$: both are measured, and the law of the diffusion
   is held against the target as well. The exact fields make every error visible.

**See** Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions (2023),
corollary 2.18 (the family of diffusions), theorem 2.23 and lemma 2.22 (the bound).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from physml import matching, nn
from physml.integrate import SRA1
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, distances, draw, experiment, setting
from physml.recipes.matching._fit import fit

INFO = RecipeInfo(
    paper="Albergo, Boffi and Vanden-Eijnden, Stochastic interpolants (2023)",
    claim="flow and diffusions of every path reach the target for every epsilon; the KL of a learned model and its bound",
    time="2 min, smoke 20 s",
)


PATHS = {
    "linear": matching.linear(),
    "trigonometric": matching.trigonometric(),
    "vp": matching.variance_preserving(),
    "sub-vp": matching.sub_variance_preserving(),
    "ve": matching.variance_exploding(0.01, 20.0),
    "edm": matching.edm(0.01, 20.0),
    "bridge": matching.brownian_bridge(1.0),
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Sizes, and what the claims ask for."""

    samples: int = 1000
    repeats: int = 12  # independent batches over which a distance is averaged
    ode_steps: int = 100
    sde_steps: int = 250  # of SRA1: the bias of 400 Euler steps shows for the steep VP path at epsilon 2
    paths: tuple[str, ...] = setting(tuple(PATHS), choices=PATHS)
    epsilons: tuple[float, ...] = setting((0.5, 2.0), length=0)
    train_steps: int = 4000
    batch_size: int = 512
    width: int = 96
    learned_epsilon: float = 0.5
    # the bounds of the claims
    floor_ratio: float = 2.0
    kl: float = 0.02


PAPER = Config()
SMOKE = Config(
    samples=300, repeats=6, ode_steps=40, sde_steps=100, paths=("linear", "bridge"), epsilons=(1.0,), train_steps=1500,
    batch_size=256, width=48, kl=0.15,
)  # fmt: skip

SABOTAGE = Sabotage(
    "the diffusions follow a third of the score", matching, "sample_sde_batch",
    lambda exact: lambda v, s, *rest, **options: exact(v, lambda t, x, args: s(t, x, args) / 3, *rest, **options),
)  # fmt: skip

STANDARD = (np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
SOURCE = (
    np.array([0.3, 0.7]),
    np.array([[-2.0, 0.0], [2.0, 1.0]]),
    np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.0], [0.0, 0.6]]]),
)
TARGET = (
    np.array([0.2, 0.5, 0.3]),
    np.array([[0.0, 2.0], [-1.5, -1.0], [1.8, -0.8]]),
    np.array([[[0.4, 0.0], [0.0, 0.1]], [[0.1, 0.05], [0.05, 0.3]], [[0.2, -0.1], [-0.1, 0.2]]]),
)  # fmt: skip


@partial(jax.jit, static_argnames=("path", "n", "steps"))
def _exact_samples(path, epsilon, n, steps, key):
    source = SOURCE if path == "bridge" else STANDARD
    v, s, _ = matching.exact_fields(PATHS[path], source, TARGET)
    start, noise = jax.random.split(key)
    x0 = jax.vmap(PATHS[path].start)(matching.mixture_sample(source, n, key=start))
    if epsilon is None:
        return jax.vmap(lambda x: matching.sample(v, x, steps=steps))(x0)
    schedule = lambda t: epsilon[0] * (1.0 - epsilon[1] * t)
    return matching.sample_sde_batch(v, s, x0, epsilon=schedule, steps=steps, key=noise, method=SRA1())


@experiment
def run(study, config, key):
    exact_key, floor_key, learn_key = jax.random.split(key, 3)
    exact = lambda key: matching.mixture_sample(TARGET, config.samples, key=key)
    one_key = jax.random.fold_in(floor_key, 1)
    target = distances.target(exact, config.repeats, fresh_key=floor_key, floor_key=one_key)
    # Every schedule epsilon(t) = value (1 - decay t); None is the flow.
    epsilons: dict = {"0": None}
    for e in config.epsilons:
        epsilons |= {f"{e:g}": (e, 0.0), f"{e:g}(1 - t)": (e, 1.0)}
    study.keep(target=target.fresh[0], floors={}, samples={})
    laws = [(i, path, j, name) for i, path in enumerate(config.paths) for j, name in enumerate(epsilons)]
    for i, path, j, name in study.each(laws, "law"):
        steps = config.ode_steps if epsilons[name] is None else config.sde_steps
        law_key = jax.random.fold_in(jax.random.fold_in(exact_key, i), j)
        x = _exact_samples(path, epsilons[name], config.repeats * config.samples, steps, law_key)
        quantity = f"{path}, epsilon {name}: energy distance"
        study.data.floors[path, name] = target.reached(study, quantity, x, config.floor_ratio)
        study.data.samples[f"{path}, epsilon {name}"] = x[: config.samples]
    _learned(study, config, target, learn_key)


def _learned(study, config, target, key):
    """Velocity and score learned on the straight path: the KL of the flow, its bound for the diffusion, and samples."""
    path, epsilon = PATHS["linear"], config.learned_epsilon
    keys = jax.random.split(key, 6)

    def loss(nets, _, *, key):
        k0, k1, k2, k3 = jax.random.split(key, 4)
        x0 = jax.random.normal(k0, (config.batch_size, 2))
        x1 = matching.mixture_sample(TARGET, config.batch_size, key=k1)
        velocity_loss = matching.match(nets[0], path, x0, x1, key=k2)
        return velocity_loss + matching.match(nets[1], path, x0, x1, key=k3, target="score")

    nets = tuple(nn.MLP(2, width=config.width, depth=3, key=k) for k in keys[:2])
    found = fit(loss, nets, None, rate=3e-3, steps=config.train_steps, key=keys[2], progress=study.progress)
    v_hat, s_hat = found.ema
    v, s, _ = matching.exact_fields(path, None, TARGET)

    @jax.jit
    def measure(x1, key):
        normal = lambda x: jax.scipy.stats.norm.logpdf(x).sum()
        log_hat = jax.vmap(lambda x: matching.log_prob(v_hat, x, normal, steps=50))(x1)
        log_ratio = jax.vmap(lambda x: matching.mixture_log_prob(TARGET, x))(x1) - log_hat
        k0, k1 = jax.random.split(key)
        t = (jnp.arange(len(x1), dtype=x1.dtype) + jax.random.uniform(k0)) / len(x1)
        x0 = jax.random.normal(k1, x1.shape)
        # The bound stops short of t = 1, where the score of a learned model is not defined; so does the diffusion.
        t = 0.995 * t

        def gap(t, x0, x1):
            x = path.at(t, x0, x1, x0).x
            return jnp.sum((v_hat(t, x, None) - v(t, x) + epsilon * (s_hat(t, x, None) - s(t, x))) ** 2)

        return log_ratio, jax.vmap(gap)(t, x0, x1) / (4 * epsilon)

    log_ratio, gap = measure(matching.mixture_sample(TARGET, 4 * config.samples, key=keys[3]), keys[4])
    kl, bound = mean_and_error(log_ratio), mean_and_error(gap)
    study.at_most("learned flow: KL to the target, exact likelihood", kl, config.kl, "nats")
    study.at_least("the same is not negative, in standard errors", kl.z(0.0), -5.0, "Gibbs' inequality")
    source = "nats; 5 x what is asked of the flow"
    study.at_most("learned diffusion: the bound on its KL", bound, 5 * config.kl, source)
    x0 = jax.random.normal(keys[5], (config.repeats * config.samples, 2))
    sde = matching.sample_sde_batch(v_hat, s_hat, x0, epsilon=epsilon, steps=config.sde_steps, key=keys[4])
    limit = 1.5 * config.floor_ratio * target.floor
    study.at_most("learned diffusion: energy distance", target.distance(sde), limit, "beside two exact samples")
    study.data.samples["learned diffusion, linear"] = sde[: config.samples]
    study.keep(log_ratio=log_ratio, kl=kl.value, bound=bound.value)


def plot(result):
    """Energy distances of every law beside the floor, three clouds, and the likelihood ratio of the learned flow."""
    d = result.data
    figure, (floors, exact, learned, ratio) = draw.panels(1, 4, height=3.9, width_ratios=(1.6, 1, 1, 1.1))
    paths, epsilons = (list(dict.fromkeys(names)) for names in zip(*d.floors, strict=True))
    for j, epsilon in enumerate(epsilons):
        heights = [d.floors[path, epsilon] for path in paths]
        floors.plot(np.arange(len(paths)) + 0.12 * (j - 2), heights, "o", label=rf"$\epsilon = {epsilon}$")
    floors.axhline(1.0, color="k", lw=1)
    floors.set_xticks(range(len(paths)), paths, rotation=30)
    title = "exact fields, every path and diffusion"
    draw.label(floors, title, y="energy distance / floor", ylim=(0, None), legend={"ncols": 3})
    for axis, name in ((exact, list(d.samples)[-3]), (learned, list(d.samples)[-1])):
        draw.beside(axis, d.target, d.samples[name], name, reach=3.7)
    draw.histogram(ratio, d.log_ratio, np.linspace(-1, 1, 61))
    ratio.axvline(0, color="k", lw=1)
    title = f"learned flow: KL {d.kl:.4f}, bound {d.bound:.3f}"
    draw.label(ratio, title, r"$\ln p_1(x) - \ln \hat p_1(x)$", "density")
    return figure
