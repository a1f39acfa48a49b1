"""Resumed equals uninterrupted, and a checkpoint that cannot be continued is refused and left alone."""

import gc
import json
import os
import shutil
import signal
import threading
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from physml import train

OPTIMIZER = optax.adam(1e-2)


def loss(model, batch, *, key):
    x, y = batch
    noise = 0.1 * jax.random.normal(key, x.shape, x.dtype)
    return jnp.mean((jax.vmap(model)(x + noise)[:, 0] - y) ** 2)


def net(width=8):
    return eqx.nn.MLP(3, 1, width, 1, key=jax.random.key(1))


def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    return x, np.sin(x).sum(1)


def go(steps=60, **change):
    call = dict(model=net(), data=table(), optimizer=OPTIMIZER, batch_size=8, ema_decay=0.9, chunk=20)
    call |= dict(steps=steps, key=jax.random.key(2)) | change
    return train.fit(loss, **call)


def same(a, b):
    leaves = [eqx.filter((r.model, r.ema, r.history), eqx.is_array) for r in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *leaves)


def tree_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole():
    return go()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 35 steps with checkpoints at 15, 30 and 35, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    go(35, checkpoint=train.Checkpoint(folder, every=15))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_resumed_equals_uninterrupted(whole, folder, tmp_path):
    assert steps_in(folder) == [15, 30, 35]
    log = tmp_path / "log.jsonl"
    resumed = go(checkpoint=train.Checkpoint(str(folder), every=15), log=log, chunk=7)
    same(resumed, whole)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(60))
    assert steps_in(folder) == [35, 45, 60]
    same(go(checkpoint=train.Checkpoint(folder, every=15)), whole)  # nothing left to do
    with pytest.raises(train.CheckpointError, match="step 60, beyond steps=35"):
        go(35, checkpoint=train.Checkpoint(folder))
    with pytest.raises(train.CheckpointError, match="resume=False"):
        go(checkpoint=train.Checkpoint(folder), resume=False)


def test_keep_and_the_stop_name_the_last_good_checkpoint(tmp_path):
    def fails(model, batch, *, key):
        return jnp.where(model > 24.5, jnp.inf, -model)

    checkpoint = train.Checkpoint(tmp_path / "run", every=5, keep=2)
    call = dict(optimizer=optax.sgd(1.0), steps=40, checkpoint=checkpoint, key=jax.random.key(0))
    for _ in range(2):  # a resumed run stops at the same step
        with pytest.raises(train.NonFiniteError, match=r"inf at step 25 .*last good checkpoint is .*run/25") as info:
            train.fit(fails, jnp.zeros(()), **call)
        assert info.value.checkpoint == str(tmp_path / "run" / "25")
        assert steps_in(tmp_path / "run") == [20, 25]


def test_interrupt_from_a_callback_leaves_a_checkpoint(whole, tmp_path):
    def stop(step, so_far, metrics):
        if step == 40:
            raise KeyboardInterrupt

    checkpoint = train.Checkpoint(tmp_path / "run", every=1000)
    with pytest.raises(KeyboardInterrupt):
        go(checkpoint=checkpoint, callbacks=[stop])
    assert steps_in(tmp_path / "run") == [40]
    same(go(checkpoint=checkpoint), whole)


@pytest.fixture
def interrupts():
    """Ctrl-C raises `KeyboardInterrupt`, also where the shell that started this process ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_inside_a_chunk_waits_for_its_end(tmp_path, interrupts):
    def slow(model, batch, *, key):
        jax.debug.callback(lambda: time.sleep(0.02))
        return jnp.sum(model**2)

    def call(steps):
        options = dict(optimizer=OPTIMIZER, steps=steps, chunk=10, key=jax.random.key(0))
        return train.fit(slow, jnp.ones(2), checkpoint=train.Checkpoint(tmp_path / "run", every=10_000), **options)

    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call(1_000)
    (step,) = steps_in(tmp_path / "run")
    assert step % 10 == 0
    assert len(call(step).history.loss) == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(model=net(9)), r"MLP|layers.* was float32\[8"),
        (dict(optimizer=optax.sgd(0.1)), "only in the checkpoint"),
        (dict(optimizer=optax.chain(optax.adam(1e-2), optax.trace(0.9))), "checkpoint"),
        (dict(ema_decay=None), "ema_decay was 0.9, is None"),
        (dict(key=jax.random.key(3)), "key was"),
        (dict(batch_size=10), "batch_size was 8, is 10"),
        (dict(data=tuple(a[:20] for a in table())), "data was"),
    ],
)
def test_another_run_is_refused(folder, change, match):
    before = tree_bytes(folder)
    with pytest.raises(train.CheckpointError, match="belongs to another run") as info:
        go(checkpoint=train.Checkpoint(folder), **change)
    info.match(match)
    assert tree_bytes(folder) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines orbax drops
@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "remove"])
def test_a_damaged_checkpoint_is_refused_or_read_right(saved, whole, tmp_path, damage):
    files = [p.relative_to(saved) for p in sorted((saved / "35").rglob("*")) if p.is_file()]
    refused = []
    for i, name in enumerate(files):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        raw = (folder / name).read_bytes()
        middle = len(raw) // 2
        if damage == "remove":
            (folder / name).unlink()
        else:
            bad = {
                "truncate": raw[:middle],
                "empty": b"",
                "flip": raw[:middle] + bytes([raw[middle] ^ 0x55]) + raw[middle + 1 :],
            }
            (folder / name).write_bytes(bad[damage])
        before = tree_bytes(folder)
        try:
            result = go(35, checkpoint=train.Checkpoint(folder))
        except train.CheckpointError as error:
            refused.append(name.name)
            assert "damaged" in str(error) and "resume from step 30" in str(error)
        else:
            np.testing.assert_array_equal(result.history.loss, whole.history.loss[:35])
        assert tree_bytes(folder) == before
    gc.collect()
    if damage in ("truncate", "empty"):
        assert {"manifest.ocdbt", "metadata"} <= set(refused)


def test_path_and_numbers_are_checked(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(train.CheckpointError, match="is a file"):
        go(checkpoint=train.Checkpoint(tmp_path / "file"))
    with pytest.raises(ValueError, match="every of Checkpoint must be an integer of at least 1, got 0"):
        go(checkpoint=train.Checkpoint(tmp_path / "run", every=0))


def test_missing_orbax_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"physml\[checkpoint\]"):
        go(checkpoint=train.Checkpoint(tmp_path / "run"))


def test_keys_low_precision_and_empty_arrays_in_the_state(tmp_path):
    def flat(model, batch, *, key):
        return jnp.sum(model["a"].astype(jnp.float32) ** 2)

    model = {"a": jnp.ones(4, jnp.bfloat16), "none": jnp.zeros((0, 3))}
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adam(0.1))

    def call(steps, checkpoint=None):
        return train.fit(flat, model, optimizer=optimizer, steps=steps, checkpoint=checkpoint, key=jax.random.key(0))

    checkpoint = train.Checkpoint(tmp_path / "run", every=5)
    call(5, checkpoint)
    same(call(12, checkpoint), call(12))


def test_save_and_load_one_model(tmp_path):
    path = tmp_path / "model.bin"
    model = {
        "net": net(),
        "half": jnp.ones(3, jnp.bfloat16),
        "n": jnp.arange(2),
        "key": jax.random.key(5),
        "f": len,
    }
    train.save(path, model)
    like = eqx.tree_at(lambda m: m["net"].layers[0].weight, model, replace_fn=jnp.zeros_like)
    read = train.load(path, like)
    assert eqx.tree_equal(read, model)
    assert os.listdir(tmp_path) == ["model.bin"]
    with pytest.raises(train.CheckpointError, match="holds another model"):
        train.load(path, {**model, "net": net(9)})
    with pytest.raises(FileNotFoundError):
        train.load(tmp_path / "other", model)
    raw = path.read_bytes()
    at = raw.index(np.asarray(model["net"].layers[0].weight).tobytes())
    flipped = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    for bad in (raw[: len(raw) // 2], b"", flipped):
        path.write_bytes(bad)
        with pytest.raises(train.CheckpointError, match="damaged"):
            train.load(path, model)
        assert path.read_bytes() == bad
