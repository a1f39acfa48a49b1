r"""Learning two tasks in a row with binary weights: theory, simulation, and real digits.

Two teachers of similarity $r_0$ label the examples of two tasks. A student that solves task 2 near a typical solution
$\tilde w$ of task 1 has the entropy s(p) at overlap p; the weight $\hat p = -s'(p)$ of the overlap decides how much of
task 1 survives. Approximate message passing with the bias $\hat p\tilde w$ samples the same states at finite size.
Variational continual learning trains means $m = \tanh\theta$ of independent weights, with the outcome of task 1 as the
prior of task 2, and a theory of its own; both families lie in the plane of the two errors of generalisation,
$\arccos(r_t)/\pi$ of a solution and $\arccos(r_t/\sqrt q)/\pi$ of the means.

On real digits a network of two layers learns five pairs of digits one after the other, in a random order, with one
and the same output.
The variational prior is compared with elastic weight consolidation, $\frac c2\sum_iF_i(\theta_i - \theta_i^0)^2$ with
the diagonal F of Fisher's matrix summed over the tasks before, and with plain training. Each method's strength is
chosen on the training images.

**See** Li, Huang, Zou and Huang, Statistical mechanics of continual learning: variational principle and mean-field
potential (2023); Kirkpatrick et al., PNAS 114, 3521 (2017); Györgyi, Phys. Rev. A 41, 7097 (1990).
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from physml import data
from physml.core.progress import progress_bar
from physml.core.types import Key
from physml.hopfield.learning.perceptron import examples_of, flipped, messages
from physml.hopfield.learning.variational import learn, log_likelihood, margins, minimise
from physml.hopfield.theory.continual import two_tasks
from physml.hopfield.theory.perceptron import random_label_capacity, student_transitions
from physml.hopfield.theory.variational import variational_tasks
from physml.recipes._result import Info, Result, at_least, at_most, close_to

INFO = Info(
    paper="Li, Huang, Zou and Huang, Statistical mechanics of continual learning (2023)",
    claim="forgetting in binary perceptrons as two theories predict it; digits: a prior forgets less than none",
    time="3 min",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The tasks of the perceptron, the simulated sizes, and the digits."""

    alpha1: float = 0.8
    alpha2: tuple[float, ...] = (0.3, 0.6, 0.9)
    similarity: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
    fields: tuple[float, ...] = (0.0, 0.5, 1.0)  # hat p of message passing
    held: float = 0.5  # hat p of the lines over the load
    size: int = 1000
    runs: int = 12
    points: int = 25  # of the curves; 0 leaves them and the transitions out
    # digits
    networks: int = 3  # initial values; 0 leaves the digits out
    hidden: int = 64
    steps: int = 200
    weights: tuple[float, ...] = (5.0, 15.0, 30.0, 50.0)  # lambda
    elastic: tuple[float, ...] = (3e2, 1e3, 3e3, 1e4)  # c

    def __post_init__(self):
        if self.runs < 5 or self.size < 100 or max(*self.alpha2, self.alpha1) > 1.2:
            raise ValueError(f"5 runs, 100 weights and loads below the transition at 1.24 are needed, got {self}")


PAPER = Config()
SMOKE = Config(alpha1=0.6, alpha2=(0.6,), similarity=(0.5,), fields=(0.5,), size=400, runs=6, points=0, networks=0)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def run(config: Config, *, key: Key, progress: bool = False) -> Result:
    """`key` is that of the teachers, the examples and the networks."""
    claims: list = []
    arrays: dict[str, np.ndarray] = {}
    with progress_bar(4, "continual learning", "part", show=progress) as bar:
        arrays |= _theory(config, claims)
        bar.update()
        arrays |= _messages(config, claims, jax.random.fold_in(key, 0))
        bar.update()
        arrays |= _variational(config, claims, jax.random.fold_in(key, 1))
        bar.update()
        if config.networks:
            arrays |= _digits(config, claims, jax.random.fold_in(key, 2))
        bar.update()
    return Result(tuple(claims), {c.quantity: c.value for c in claims}, arrays)


def _theory(config, claims):
    if not config.points:
        return {}
    with jax.enable_x64(True):
        first, last = student_transitions()
        claims.append(close_to("load of perfect generalisation", first, 1.245, 5e-4, "Györgyi 1990"))
        claims.append(close_to("load of the spinodal", last, 1.493, 1e-3, "Seung, Sompolinsky and Tishby 1992: 1.49"))
        claims.append(close_to("capacity for random labels", random_label_capacity(), 0.833, 5e-4, "Krauth and Mézard"))
        a1, a2, r0 = config.alpha1, config.alpha2[len(config.alpha2) // 2], config.similarity[-2]
        ps = jnp.linspace(-0.3, 0.75, 2 * config.points)
        curve = jax.jit(jax.vmap(lambda p: two_tasks(a1, a2, r0, overlap=p)))(ps)
        free = two_tasks(a1, a2, r0, field=0.0).check()
        top = float(ps[np.nanargmax(curve.entropy)])
        claims.append(
            close_to(
                "p of the largest s(p)", top, free.p, float(ps[1] - ps[0]), "task 2 alone: the product of overlaps"
            )
        )
        loads = jnp.linspace(0.02, 1.1, config.points)
        held = jax.jit(jax.vmap(lambda a, r0: two_tasks(a1, a, r0, field=config.held)))
        soft = jax.jit(jax.vmap(lambda a, r0: variational_tasks(a1, a, r0)))
        rows = [(held(loads, 0 * loads + r), soft(loads, 0 * loads + r)) for r in config.similarity]
        # The plane of both errors: over hat p, and over the weight of the prior.
        fs, ws = jnp.linspace(0.0, 3.0, config.points), jnp.geomspace(0.5, 20.0, config.points)
        plane = jax.jit(jax.vmap(lambda f: two_tasks(a1, a2, r0, field=f)))(fs)
        priors = jax.jit(jax.vmap(lambda w: variational_tasks(a1, a2, r0, weight=w)))(ws)
        # Beyond this strength no solutions are left, s < 0.
        inside = np.asarray(plane.entropy > 0)
        return {
            "p": np.asarray(ps), "s": np.asarray(curve.entropy), "free p": np.asarray(free.p),
            "load": np.asarray(loads), "held": np.stack([np.stack([a.error1, a.error2]) for a, _ in rows]),
            "soft": np.stack([np.stack([b.error1[:, 1], b.error2[:, 1]]) for _, b in rows]),
            "plane": np.stack([plane.error1, plane.error2])[:, inside],
            "priors": np.stack([priors.error1[:, 1], priors.error2[:, 1]]), "before": np.asarray(priors.error1[:, 0]),
        }  # fmt: skip


def _deviation(rows, theory):
    """The largest, in standard errors, over the columns."""
    rows = np.asarray(rows)
    return np.max(np.abs(rows.mean(0) - np.asarray(theory)) / (rows.std(0, ddof=1) / len(rows) ** 0.5))


def _messages(config, claims, key):
    """Overlaps q, r1, r2, p of message passing over the loads, and over similarity and field at the middle load."""
    n, middle = config.size, config.alpha2[len(config.alpha2) // 2]
    cases = [(a, r0, config.held) for a in config.alpha2 for r0 in config.similarity]
    cases += [(middle, config.similarity[-2 if len(config.similarity) > 1 else 0], f) for f in config.fields]
    cases = list(dict.fromkeys(cases))
    out, worst, steps = [], 0.0, 0
    for i, (alpha, r0, f) in enumerate(cases):
        theory = two_tasks(config.alpha1, alpha, r0, field=f).check()
        rows = []
        for k in range(config.runs):
            keys = jax.random.split(jax.random.fold_in(key, 1000 * i + k), 4)
            w1 = jnp.sign(jax.random.normal(keys[0], (n,)))
            # A solution and its teacher are exchangeable: flips of the teacher are a typical solution.
            w, w2 = flipped(w1, float(theory.reference), key=keys[1]), flipped(w1, r0, key=keys[2])
            x, y = examples_of(w2, round(alpha * n), key=keys[3])
            found = messages(x, y, bias=f * w)
            steps = max(steps, int(found.check().status.step))
            rows.append([float(found.m @ v) / n for v in (found.m, w1, w2, w)])
        worst = max(worst, _deviation(rows, [theory.q, theory.r1, theory.r2, theory.p]))
        rows = np.asarray(rows)
        errors = np.arccos(rows[:, 1:3]) / np.pi
        out.append([alpha, r0, f, *errors.mean(0), *errors.std(0, ddof=1) / config.runs**0.5])
    name = f"message passing, {len(cases)} pairs of tasks: overlaps against theory, worst z"
    claims.append(at_most(name, worst, 5, f"N = {n}, {config.runs} runs"))
    claims.append(at_most("steps of message passing", steps, 100, "far from the transitions"))
    return {"messages": np.asarray(out)}


def _variational(config, claims, key):
    n, alpha = config.size, config.alpha2[len(config.alpha2) // 2]
    out, worst, less = [], 0.0, []
    for i, r0 in enumerate(config.similarity):
        theory = variational_tasks(config.alpha1, alpha, r0).check()
        rows = []
        for k in range(config.runs):
            keys = jax.random.split(jax.random.fold_in(key, 1000 * i + k), 4)
            w1 = jnp.sign(jax.random.normal(keys[0], (n,)))
            w2 = flipped(w1, r0, key=keys[1])
            prior, after = (jnp.zeros((n, 1)),), []
            for load, teacher, k_x in ((config.alpha1, w1, keys[2]), (alpha, w2, keys[3])):
                prior, _ = learn(*examples_of(teacher, round(load * n), key=k_x), prior, steps=150)
                after.append(jnp.tanh(prior[0][:, 0]))
            a, b = after
            rows.append([float(v @ w) / n for v, w in ((a, a), (a, w1), (b, b), (b, w1), (b, w2), (a, b))])
        wanted = [theory.q[0], theory.r1[0], theory.q[1], theory.r1[1], theory.r2[1], theory.p]
        worst = max(worst, _deviation(rows, wanted))
        rows = np.asarray(rows)
        errors = np.arccos(rows[:, 3:5] / np.sqrt(rows[:, 2:3])) / np.pi
        less.append(errors[:, 0].mean() - np.mean(np.arccos(rows[:, 1] / np.sqrt(rows[:, 0])) / np.pi))
        out.append([alpha, r0, *errors.mean(0), *errors.std(0, ddof=1) / config.runs**0.5])
    name = f"trained fields, {len(out)} similarities: overlaps of both tasks against theory, worst z"
    claims.append(at_most(name, worst, 5, f"N = {n}, {config.runs} runs"))
    if len(less) > 1:
        claims.append(
            at_least("forgetting of unlike tasks, above that of like ones", less[0] - less[-1], 0.03, "theory")
        )
    return {"trained": np.asarray(out), "forgetting": np.asarray(less)}


def _tasks():
    """Five pairs of digits at half resolution: ((inputs, labels) to train, to test) of each."""
    images = data.mnist_small()
    pool = lambda x: x.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(x), 196)
    train, test = pool(images.train_x), pool(images.test_x)
    centre, scale = train.mean(0), train.std()

    def pair(x, y, a, b):
        rows = (y == a) | (y == b)
        return jnp.asarray((x[rows] - centre) / scale), jnp.asarray(np.where(y[rows] == a, 1.0, -1.0), jnp.float32)

    return [(pair(train, images.train_y, *ab), pair(test, images.test_y, *ab)) for ab in PAIRS]


@eqx.filter_jit
def _elastic(x, y, start, importance, strength, steps):
    def loss(fields):
        pull = jax.tree.map(lambda f, a, b: jnp.sum(f * (a - b) ** 2), importance, fields, start)
        return 0.5 * strength * sum(jax.tree.leaves(pull)) - log_likelihood(fields, x, y)

    return minimise(loss, start, steps=steps, rate=0.05)[0]


@eqx.filter_jit
def _fisher(fields, x):
    """Its diagonal, with the labels' probabilities under the network: the data's labels would hide what is learned."""
    k, slopes = jax.vmap(jax.value_and_grad(lambda f, x: margins(f, x[None])[0]), (None, 0))(fields, x)
    weight = jnp.exp(-(k**2) - math.log(2 * math.pi) - log_ndtr(k) - log_ndtr(-k))
    return jax.tree.map(lambda s: jnp.tensordot(weight, s**2, 1), slopes)


def _sequence(config, tasks, start, way, strength):
    """(tasks, tasks) accuracy on the test images after each task, and the mean one on all training images at the end."""
    zero = jax.tree.map(jnp.zeros_like, start)
    fields, prior, importance, table = start, zero, zero, []
    right = lambda fields, xy: float(jnp.mean(margins(fields, xy[0]) * xy[1] > 0))
    for (x, y), _ in tasks:
        if way == "variational":
            fields = prior = learn(x, y, prior, start=fields, weight=strength, steps=config.steps)[0]
        else:
            fields = _elastic(x, y, fields, importance, jnp.asarray(strength), config.steps)
        if way == "elastic":
            importance = jax.tree.map(jnp.add, importance, _fisher(fields, x))
        table.append([right(fields, test) for _, test in tasks])
    return np.asarray(table), np.mean([right(fields, train) for train, _ in tasks])


def _digits(config, claims, key):
    tasks = _tasks()
    ways = {"variational": config.weights, "elastic": config.elastic, "plain": (0.0,)}
    curves: dict[str, list] = {way: [] for way in ways}
    best: dict[str, list] = {way: [] for way in ways}
    for i in range(config.networks):
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        order = np.asarray(jax.random.permutation(keys[2], len(tasks)))
        start = (
            0.1 * jax.random.normal(keys[0], (tasks[0][0][0].shape[1], config.hidden)),
            0.1 * jax.random.normal(keys[1], (config.hidden, 1)),
        )
        for way, strengths in ways.items():
            outs = [_sequence(config, [tasks[j] for j in order], start, way, strength) for strength in strengths]
            curves[way].append([table[-1].mean() for table, _ in outs])
            best[way].append(outs[int(np.argmax([train for _, train in outs]))][0])
    tables = {way: np.mean(rows, 0) for way, rows in best.items()}
    final = {way: table[-1].mean() for way, table in tables.items()}
    spread = lambda a, b: (
        np.std([x[-1].mean() - y[-1].mean() for x, y in zip(best[a], best[b], strict=True)], ddof=1)
        / config.networks**0.5
    )
    names = {"elastic": "elastic weight consolidation", "plain": "plain training"}
    for way, margin in (("plain", 0.03), ("elastic", -0.03)):
        gain, error = final["variational"] - final[way], spread("variational", way)
        claims.append(at_least(f"accuracy, variational less {names[way]}", gain, margin, "same networks", error))
    learned = min(np.diag(table).mean() for table in tables.values())
    claims.append(at_least("accuracy on a task just learned, lowest of the methods", learned, 0.85, "chance is .5"))
    arrays = {f"digits {way}": table for way, table in tables.items()}
    strengths = {f"strength {way}": np.asarray(ways[way]) for way in ("variational", "elastic")}
    return arrays | strengths | {f"accuracy {way}": np.mean(curves[way], 0) for way in ways}


def plot(result: Result) -> Any:
    """The potential, forgetting over the load, the plane of both errors, and the digits."""
    import matplotlib.pyplot as plt

    a = result.arrays
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    potential, load, plane, similar, digits, strength = axes.ravel()
    for ax, table in ((digits, "digits plain"), (strength, "digits plain")):
        ax.set_visible(table in a)
    points, trained = a["messages"], a["trained"]
    if "s" in a:
        potential.plot(a["p"], a["s"], "C0")
        potential.axvline(a["free p"], color="k", lw=0.7, ls=":", label="task 2 alone")
        potential.axhline(0, color="0.6", lw=0.6)
        potential.legend(fontsize=8)
    potential.set(xlabel="overlap p with a solution of task 1", ylabel="entropy s(p)", title="solutions of task 2")
    colors = {r0: f"C{i}" for i, r0 in enumerate(np.unique(trained[:, 1]))}
    held = np.bincount(np.unique(points[:, 2], return_inverse=True)[1]).argmax()
    held = np.unique(points[:, 2])[held]
    for i, (r0, color) in enumerate(colors.items()):
        if "load" in a:
            load.plot(a["load"], a["held"][i, 0], color=color)
            load.plot(a["load"], a["soft"][i, 0], color=color, ls="--")
        rows = points[(points[:, 1] == r0) & (points[:, 2] == held)]
        load.errorbar(rows[:, 0], rows[:, 3], rows[:, 5], fmt="o", color=color, ms=4, label=f"$r_0$ = {r0:g}")
        rows = trained[trained[:, 1] == r0]
        load.errorbar(rows[:, 0], rows[:, 2], rows[:, 4], fmt="s", color=color, mfc="none", ms=5)
    load.set(xlabel=r"$\alpha_2$", ylabel="error on task 1", title="full: solution at a field; dashed: variational")
    load.legend(fontsize=8)
    middle = trained[0, 0]
    if "plane" in a:
        plane.plot(*a["plane"], "C0", label=r"solutions, over $\hat p$")
        plane.plot(*a["priors"], "C1--", label=r"variational, over $\lambda$")
        r0 = [r for r in colors][-2]
        rows = points[(points[:, 0] == middle) & (points[:, 1] == r0)]
        plane.errorbar(rows[:, 3], rows[:, 4], rows[:, 6], rows[:, 5], "C0o", ms=4)
        rows = trained[trained[:, 1] == r0]
        plane.errorbar(rows[:, 2], rows[:, 3], rows[:, 5], rows[:, 4], "C1s", ms=5, mfc="none")
        plane.legend(fontsize=8)
    plane.set(xlabel="error on task 1", ylabel="error on task 2", title="both errors after task 2")
    similar.errorbar(trained[:, 1], trained[:, 2], trained[:, 4], fmt="s-", label="task 1")
    similar.errorbar(trained[:, 1], trained[:, 3], trained[:, 5], fmt="o-", label="task 2")
    similar.plot(trained[:, 1], a["forgetting"], "k^-", label="forgetting")
    similar.axhline(0, color="0.6", lw=0.6)
    similar.set(xlabel="similarity $r_0$", ylabel="error", title="variational, trained")
    similar.legend(fontsize=8)
    if "digits plain" in a:
        for way, name, color in (
            ("variational", "variational", "C1"),
            ("elastic", "elastic", "C2"),
            ("plain", "plain", "C7"),
        ):
            table = a[f"digits {way}"]
            digits.plot(np.arange(1, 6), [table[i, : i + 1].mean() for i in range(5)], "o-", color=color, label=name)
            x = a.get(f"strength {way}")
            if x is None:
                strength.axhline(a["accuracy plain"][0], color=color, label=name)
            else:
                strength.plot(x, a[f"accuracy {way}"], "o-", color=color, label=name)
        digits.legend(fontsize=8)
        strength.set(xscale="log")
        strength.legend(fontsize=8)
    digits.set(xlabel="tasks learned", ylabel="accuracy on them", title="pairs of digits")
    strength.set(xlabel=r"$\lambda$, c", ylabel="accuracy on all five", title="strength of the prior, the penalty")
    return figure
