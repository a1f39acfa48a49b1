"""docs/assets/hysteresis.png: the magnetisation of Curie and Weiss in a field, and its slope.

python docs/figures/hysteresis.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from physml.core import continuation, fixed_point

BETA = 2.0
magnet = lambda m, h: jnp.tanh(BETA * m + h)

fields = jnp.linspace(-1.0, 1.0, 161)
both = continuation(magnet, fields, {"forward": -1.0, "backward": 1.0}, direction="both", max_steps=5000).check()
solution = lambda h: fixed_point(lambda m: magnet(m, h), jnp.array(1.0)).value
slope = jax.vmap(jax.grad(solution))(fields[fields > -0.5])

m = np.linspace(-0.999, 0.999, 2001)
exact = np.arctanh(m) - BETA * m
edge = np.sqrt(1 - 1 / BETA)
spinodal = BETA * edge - np.arctanh(edge)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(exact, m, "0.7", lw=1, label=r"$h = \mathrm{artanh}\, m - \beta m$")
left.plot(fields, both.forward.values, "C0o", ms=4.5, mfc="none", mew=0.7, label="forward")
left.plot(fields, both.backward.values, "C1.", ms=3, label="backward")
for h in (-spinodal, spinodal):
    left.axvline(h, color="k", ls=":", lw=0.8)
left.set(xlabel="field h", ylabel="magnetisation m", xlim=(-1, 1), xticks=np.linspace(-1, 1, 5))
left.set_title(r"hysteresis at $\beta = 2$")
left.legend(frameon=False, fontsize=8)
upper = m > edge
right.plot(exact[upper], (1 - m**2)[upper] / (1 - BETA * (1 - m**2))[upper], "0.7", lw=2, label="closed form")
right.plot(fields[fields > -0.5], slope, "C1.", ms=3, label="implicit derivative")
right.axvline(-spinodal, color="k", ls=":", lw=0.8)
right.set(xlabel="field h", ylabel="dm/dh", xlim=(-0.6, 1), ylim=(1e-2, 10), yscale="log", title="upper branch")
right.legend(frameon=False, fontsize=8)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
figure.savefig(Path(__file__).parent.parent / "assets" / "hysteresis.png", dpi=110)
