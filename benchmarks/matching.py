"""Training steps per second of flow matching: physml beside torchcfm, the same network, batch and optimiser.

taskset -c 0 python benchmarks/matching.py      # one core; needs torch, torchcfm and POT beside physml
"""

import argparse
import time
from functools import partial

import jax
import optax
from timing import compile_seconds, race, table

from physml import data, nn, train
from physml.core.types import Key
from physml.matching import Assignment, Entropic, Independent, brownian_bridge, linear, match

WIDTH, DEPTH, BATCH = 64, 3, 256
COUPLINGS = {"I-CFM": Independent(), "OT-CFM": Assignment(), "SB-CFM, Sinkhorn": Entropic(1.0)}


def draw(key: Key):
    """A batch of eight Gaussians and of moons, as torchcfm's examples take them."""
    k0, k1 = jax.random.split(key)
    return data.eight_gaussians(BATCH, key=k0), data.moons(BATCH, key=k1)


def our_loss(name):
    path = brownian_bridge(1.0) if name.startswith("SB") else linear()

    def loss(model, batch, *, key):
        return match(model, path, *batch, key=key, coupling=COUPLINGS[name])

    return loss


def ours(name, steps, source):
    """`fit` for `steps` steps; `source` is `draw`, which samples in the step, or arrays."""
    model = nn.MLP(2, width=WIDTH, depth=DEPTH, activation=jax.nn.selu, frequencies=0, key=jax.random.key(0))
    loss, optimizer = our_loss(name), optax.adam(1e-3)
    size = None if callable(source) else BATCH
    run = partial(train.fit, loss, model, source, optimizer=optimizer, steps=steps, batch_size=size, progress=False)
    return lambda: run(key=jax.random.key(1)).history.loss[-1]


def theirs(name, steps, points):
    """torchcfm's step as in its examples: MLP of torchcfm.models, Adam; batches are rows of `points`."""
    import torch
    from torchcfm import conditional_flow_matching as cfm
    from torchcfm.models.models import MLP

    torch.set_num_threads(1)
    model = MLP(dim=2, time_varying=True, w=WIDTH)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    matcher = {
        "I-CFM": lambda: cfm.ConditionalFlowMatcher(sigma=0.0),
        "OT-CFM": lambda: cfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
        "SB-CFM, Sinkhorn": lambda: cfm.SchrodingerBridgeConditionalFlowMatcher(sigma=1.0, ot_method="sinkhorn"),
    }[name]()
    x0s, x1s = (torch.from_numpy(jax.device_get(x).copy()) for x in points)

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            x0, x1 = (x[torch.randint(len(x), (BATCH,))] for x in (x0s, x1s))
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            loss = torch.mean((model(torch.cat([xt, t[:, None]], dim=-1)) - ut) ** 2)
            loss.backward()
            optimizer.step()
        return loss.detach().numpy()

    return run


def steps_per_second(steps, rounds):
    k0, k1 = jax.random.split(jax.random.key(0))
    points = data.eight_gaussians(10_000, key=k0), data.moons(10_000, key=k1)
    rows = []
    for name in COUPLINGS:
        contenders = {"torchcfm": theirs(name, steps, points), "physml": ours(name, steps, points)}
        contenders["physml, samples drawn in the step"] = ours(name, steps, draw)
        for who, seconds in (best := race(contenders, rounds)).items():
            rows.append((name, who, f"{steps / seconds:.0f}", f"{best['torchcfm'] / seconds:.2f}"))
    table(f"Training, batch {BATCH}, {DEPTH} x {WIDTH}", rows, ("", "", "steps per second", "ratio"))


def pairing(rounds):
    """The coupling alone, beside the plan and the draw of torchcfm."""
    import torch
    from torchcfm.optimal_transport import OTPlanSampler

    key = jax.random.key(0)
    rows = []
    for n in (128, 256, 512):
        k0, k1 = jax.random.split(key)
        x0, x1 = data.eight_gaussians(n, key=k0), data.moons(n, key=k1)
        a, b = (torch.from_numpy(jax.device_get(x).copy()) for x in (x0, x1))
        for name, coupling, sampler in (
            ("assignment", Assignment(), OTPlanSampler("exact")),
            ("entropic, epsilon = 1", Entropic(1.0), OTPlanSampler("sinkhorn", reg=2.0)),
        ):
            pair = jax.jit(lambda x0, x1, c=coupling: c(x0, x1, key=key))
            best = race(
                {"theirs": lambda s=sampler, a=a, b=b: s.sample_plan(a, b)[0].numpy(),
                 "ours": lambda f=pair, x0=x0, x1=x1: f(x0, x1)}, rounds,
            )  # fmt: skip
            times = [f"{1e3 * best[who]:.2f}" for who in ("theirs", "ours")]
            rows.append((name, str(n), *times, f"{best['theirs'] / best['ours']:.2f}"))
    table("One batch paired", rows, ("", "samples", "torchcfm, ms", "physml, ms", "ratio"))


def compile_times():
    rows = []
    model = nn.MLP(2, width=WIDTH, depth=DEPTH, activation=jax.nn.selu, frequencies=0, key=jax.random.key(0))
    for name in COUPLINGS:
        optimizer, loss = optax.adam(1e-3), our_loss(name)
        state, frozen = train.init_state(model, optimizer)
        step = lambda state, batch, key, f=frozen, loss=loss, o=optimizer: train.train_step(
            state, f, batch, key=key, loss=loss, optimizer=o
        )
        batch = draw(jax.random.key(1))
        rows.append((name, f"{compile_seconds(step, state, batch, jax.random.key(2)):.2f}"))
        start = time.perf_counter()
        ours(name, 1, draw)()
        rows[-1] += (f"{time.perf_counter() - start:.2f}",)
    table("Trace and compile (seconds)", rows, ("", "one step", "first call of fit"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, one thread of torch")
    steps_per_second(200 if quick else 1000, 3 if quick else 5)
    pairing(5 if quick else 20)
    compile_times()
