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
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import log_ndtr

from physml import data
from physml.hopfield import examples_of, flipped, learn, log_likelihood, margins, messages
from physml.hopfield.theory import random_label_capacity, student_transitions, two_tasks, variational_tasks
from physml.metrics import mean_and_error
from physml.recipes import RecipeInfo, Sabotage, Settings, draw, experiment, setting
from physml.train import minimise

INFO = RecipeInfo(
    paper="Li, Huang, Zou and Huang, Statistical mechanics of continual learning (2023)",
    claim="forgetting in binary perceptrons as two theories predict it; digits: a prior forgets less than none",
    time="3 min",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """The tasks of the perceptron, the simulated sizes, and the digits."""

    alpha1: float = setting(0.8, least=0.0, most=1.2)  # loads below the transition at 1.24
    alpha2: tuple[float, ...] = setting((0.3, 0.6, 0.9), least=0.0, most=1.2)
    similarity: tuple[float, ...] = setting((0.0, 0.3, 0.6, 0.9), least=-1.0, most=1.0)
    fields: tuple[float, ...] = setting((0.0, 0.5, 1.0), least=0.0)  # hat p of message passing
    held: float = 0.5  # hat p of the lines over the load
    size: int = setting(1000, least=100.0)
    runs: int = setting(12, least=5.0)
    points: int = setting(25, least=0.0)  # of the curves; 0 leaves them and the transitions out
    # digits
    networks: int = setting(3, least=0.0)  # initial values; 0 leaves the digits out
    hidden: int = 64
    steps: int = 200
    weights: tuple[float, ...] = (5.0, 15.0, 30.0, 50.0)  # lambda
    elastic: tuple[float, ...] = (3e2, 1e3, 3e3, 1e4)  # c

    @property
    def middle(self) -> float:
        """The load of task 2 for everything that is not over the load."""
        return self.alpha2[len(self.alpha2) // 2]

    @property
    def alike(self) -> float:
        """The similarity of the tasks in the plane of both errors."""
        return self.similarity[-2:][0]

    def rules(self):
        return ((self.networks != 1, "an error between networks, of which there are none or several"),)


PAPER = Config()
SMOKE = Config(alpha1=0.6, alpha2=(0.6,), similarity=(0.5,), fields=(0.5,), size=400, runs=6, points=0, networks=0)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))

SABOTAGE = (
    Sabotage(
        "message passing in a field of half the strength", sys.modules[__name__], "messages",
        lambda exact: lambda x, y, bias: exact(x, y, bias=0.5 * bias),
    ),
    Sabotage(
        "a prior of half the weight", sys.modules[__name__], "learn",
        lambda exact: lambda *a, weight=1.0, **options: exact(*a, weight=0.5 * weight, **options),
    ),
)  # fmt: skip


@experiment
def run(study, config, key):
    study.keep(config=config, theory=None, digits=None)
    for i, part in study.each(enumerate((_messages, _variational, _digits, _theory)), "part"):
        part(study, config, jax.random.fold_in(key, i))


def _theory(study, config, key):
    """Transitions of the perceptron, the entropy s(p), and the errors over load, field and weight of the prior."""
    if not config.points:
        return
    a1, a2, r0 = config.alpha1, config.middle, config.alike
    with jax.enable_x64(True):
        first, last = student_transitions()
        study.near("load of perfect generalisation", first, 1.245, "Györgyi 1990", atol=5e-4)
        study.near("load of the spinodal", last, 1.493, "Seung, Sompolinsky and Tishby 1992: 1.49", atol=1e-3)
        capacity = random_label_capacity()
        study.near("capacity for random labels", capacity, 0.833, "Krauth and Mézard", atol=5e-4)
        ps = jnp.linspace(-0.3, 0.75, 2 * config.points)
        entropy = np.asarray(jax.jit(jax.vmap(lambda p: two_tasks(a1, a2, r0, overlap=p)))(ps).entropy)
        free = two_tasks(a1, a2, r0, field=0.0).check().p
        source = "task 2 alone: the product of overlaps"
        study.near("p of the largest s(p)", ps[np.nanargmax(entropy)], free, source, atol=ps[1] - ps[0])
        loads = jnp.linspace(0.02, 1.1, config.points)
        held = jax.jit(jax.vmap(lambda a, r0: two_tasks(a1, a, r0, field=config.held).error1, (0, None)))
        soft = jax.jit(jax.vmap(lambda a, r0: variational_tasks(a1, a, r0).error1[1], (0, None)))
        over_load = {r: (held(loads, r), soft(loads, r)) for r in config.similarity}
        # The plane of both errors: over hat p, and over the weight of the prior.
        fields, weights = jnp.linspace(0.0, 3.0, config.points), jnp.geomspace(0.5, 20.0, config.points)
        plane = jax.jit(jax.vmap(lambda f: two_tasks(a1, a2, r0, field=f)))(fields)
        priors = jax.jit(jax.vmap(lambda w: variational_tasks(a1, a2, r0, weight=w)))(weights)
    solvable = np.asarray(plane.entropy > 0)  # beyond this strength no solutions are left, s < 0
    solutions = np.stack([plane.error1, plane.error2])[:, solvable]
    both = solutions, (priors.error1[:, 1], priors.error2[:, 1])
    study.keep(theory=(loads, over_load), potential=(ps, entropy, free), plane=both)


def _deviation(rows, theory):
    """The largest, in standard errors, over the columns."""
    return np.max(np.abs(mean_and_error(rows).z(np.asarray(theory))))


def _messages(study, config, key):
    """Overlaps q, r1, r2, p of message passing over the loads, and over similarity and field at the middle load."""
    n = config.size
    cases = [(a, r0, config.held) for a in config.alpha2 for r0 in config.similarity]
    cases = list(dict.fromkeys(cases + [(config.middle, config.alike, f) for f in config.fields]))
    found, worst, steps = {}, 0.0, 0
    for i, (alpha, r0, f) in enumerate(cases):
        theory = two_tasks(config.alpha1, alpha, r0, field=f).check()
        rows = []
        for k in range(config.runs):
            keys = jax.random.split(jax.random.fold_in(key, 1000 * i + k), 4)
            w1 = jnp.sign(jax.random.normal(keys[0], (n,)))
            # A solution and its teacher are exchangeable: flips of the teacher are a typical solution.
            w, w2 = flipped(w1, float(theory.reference), key=keys[1]), flipped(w1, r0, key=keys[2])
            x, y = examples_of(w2, round(alpha * n), key=keys[3])
            out = messages(x, y, bias=f * w).check()
            steps = max(steps, int(out.status.step))
            rows.append([float(out.m @ v) / n for v in (out.m, w1, w2, w)])
        worst = max(worst, _deviation(rows, [theory.q, theory.r1, theory.r2, theory.p]))
        found[alpha, r0, f] = mean_and_error(np.arccos(np.asarray(rows)[:, 1:3]) / np.pi)
    name = f"message passing, {len(cases)} pairs of tasks: overlaps against theory, worst z"
    study.at_most(name, worst, 5, f"N = {n}, {config.runs} runs")
    study.at_most("steps of message passing", steps, 100, "far from the transitions")
    study.keep(messages=found)


def _variational(study, config, key):
    """Overlaps of the trained means with each other and both teachers, after each task."""
    n = config.size
    found, worst, less = {}, 0.0, []
    for i, r0 in enumerate(config.similarity):
        theory = variational_tasks(config.alpha1, config.middle, r0).check()
        rows = []
        for k in range(config.runs):
            keys = jax.random.split(jax.random.fold_in(key, 1000 * i + k), 4)
            w1 = jnp.sign(jax.random.normal(keys[0], (n,)))
            w2 = flipped(w1, r0, key=keys[1])
            prior, after = (jnp.zeros((n, 1)),), []
            for load, teacher, k_x in ((config.alpha1, w1, keys[2]), (config.middle, w2, keys[3])):
                prior, _ = learn(*examples_of(teacher, round(load * n), key=k_x), prior, steps=150)
                after.append(jnp.tanh(prior[0][:, 0]))
            a, b = after
            rows.append([float(v @ w) / n for v, w in ((a, a), (a, w1), (b, b), (b, w1), (b, w2), (a, b))])
        wanted = [theory.q[0], theory.r1[0], theory.q[1], theory.r1[1], theory.r2[1], theory.p]
        worst = max(worst, _deviation(rows, wanted))
        rows = np.asarray(rows)
        found[r0] = mean_and_error(np.arccos(rows[:, 3:5] / np.sqrt(rows[:, 2:3])) / np.pi)
        less.append(found[r0].value[0] - np.mean(np.arccos(rows[:, 1] / np.sqrt(rows[:, 0])) / np.pi))
    name = f"trained fields, {len(found)} similarities: overlaps of both tasks against theory, worst z"
    study.at_most(name, worst, 5, f"N = {n}, {config.runs} runs")
    if len(less) > 1:
        study.at_least("forgetting of unlike tasks, above that of like ones", less[0] - less[-1], 0.03, "theory")
    study.keep(trained=found, forgetting=less)


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

    return minimise(loss, start, optax.adam(optax.cosine_decay_schedule(0.05, steps)), steps=steps).x


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


def _digits(study, config, key):
    """Three methods on five pairs of digits in a row, each at the strength that the training images prefer."""
    if not config.networks:
        return
    tasks = _tasks()
    ways = {"variational": config.weights, "elastic": config.elastic, "plain": (0.0,)}
    curves, tables = {way: [] for way in ways}, {way: [] for way in ways}
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
            tables[way].append(outs[int(np.argmax([train for _, train in outs]))][0])
    last = {way: np.mean([table[-1] for table in found], 1) for way, found in tables.items()}
    names = {"elastic": "elastic weight consolidation", "plain": "plain training"}
    for way, margin in (("plain", 0.03), ("elastic", -0.03)):
        gain = mean_and_error(last["variational"] - last[way])
        study.at_least(f"accuracy, variational less {names[way]}", gain, margin, "same networks")
    tables = {way: np.mean(found, 0) for way, found in tables.items()}
    learned = min(np.diag(table).mean() for table in tables.values())
    study.at_least("accuracy on a task just learned, lowest of the methods", learned, 0.85, "chance is .5")
    study.keep(digits={way: (tables[way], ways[way], np.mean(curves[way], 0)) for way in ways})


def plot(result):
    """The potential, forgetting over the load, the plane of both errors, and the digits."""
    d, c = result.data, result.data.config
    names = ["load", "similar"]
    names += ["potential", "plane"] if d.theory else []
    names += ["digits", "strength"] if d.digits else []
    figure, grid = draw.panels(2, len(names) // 2)
    axes = dict(zip(names, grid.flat, strict=True))
    for i, r0 in enumerate(c.similarity):
        if d.theory:
            loads, over_load = d.theory
            for error, style in zip(over_load[r0], ("-", "--"), strict=True):
                draw.theory(axes["load"], loads, error, f"C{i}{style}")
        rows = np.array(
            [[a, error.value[0], error.error[0]] for (a, r, f), error in d.messages.items() if (r, f) == (r0, c.held)]
        )
        draw.measured(axes["load"], *rows.T, sigmas=1.0, color=f"C{i}", label=f"$r_0$ = {r0:g}")
        value, error = d.trained[r0]
        draw.measured(axes["load"], [c.middle], value[:1], error[:1], sigmas=1.0, fmt="s", color=f"C{i}", mfc="none")
    draw.label(axes["load"], "full: solution at a field; dashed: variational", r"$\alpha_2$", "error on task 1")
    if d.theory:
        _draw_theory(axes["potential"], axes["plane"], d, c)
    trained = np.array(list(d.trained.values()))  # (similarities, value and error, tasks)
    for task, style in enumerate(("s-", "o-")):
        value, error = trained[:, :, task].T
        draw.measured(axes["similar"], c.similarity, value, error, sigmas=1.0, fmt=style, label=f"task {task + 1}")
    axes["similar"].plot(c.similarity, d.forgetting, "k^-", label="forgetting")
    axes["similar"].axhline(0, color="0.6", lw=0.6)
    draw.label(axes["similar"], "variational, trained", "similarity $r_0$", "error")
    if d.digits:
        _draw_digits(axes["digits"], axes["strength"], d.digits)
    return figure


def _draw_theory(potential, plane, d, c):
    ps, entropy, free = d.potential
    draw.theory(potential, ps, entropy, "C0")
    potential.axvline(float(free), color="k", lw=0.7, ls=":", label="task 2 alone")
    potential.axhline(0, color="0.6", lw=0.6)
    draw.label(potential, "solutions of task 2", "overlap p with a solution of task 1", "entropy s(p)")
    solutions, priors = d.plane
    draw.theory(plane, *solutions, "C0", label=r"solutions, over $\hat p$")
    draw.theory(plane, *priors, "C1--", label=r"variational, over $\lambda$")
    points = [error for (a, r0, _), error in d.messages.items() if (a, r0) == (c.middle, c.alike)]
    for style, errors in (("C0o", points), ("C1s", [d.trained[c.alike]])):
        for value, error in errors:
            plane.errorbar(*value, error[1], error[0], style, ms=4, mfc="none")
    draw.label(plane, "both errors after task 2", "error on task 1", "error on task 2")


def _draw_digits(digits, strength, found):
    for (way, (table, strengths, accuracy)), color in zip(found.items(), ("C1", "C2", "C7"), strict=True):
        digits.plot(np.arange(1, 6), [table[i, : i + 1].mean() for i in range(5)], "o-", color=color, label=way)
        if way == "plain":
            strength.axhline(accuracy[0], color=color, label=way)
        else:
            strength.plot(strengths, accuracy, "o-", color=color, label=way)
    draw.label(digits, "pairs of digits", "tasks learned", "accuracy on them")
    draw.label(strength, "strength of the prior, the penalty", r"$\lambda$, c", "accuracy on all five", log="x")
