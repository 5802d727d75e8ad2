"""Stores: whole whatever happens, of one thing only, the same numbers by every way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
import zarr.storage._local
from PIL import Image

import bilrp
from bilrp.collect.building import build
from bilrp.collect.compress import Basis, common_basis, pack
from bilrp.collect.inputs import BadInput, Photos, Tensors, read_photo
from bilrp.collect.records import (
    Damaged,
    Record,
    StoreBusy,
    StoreError,
    WrongStore,
    builder,
    record_path,
)
from bilrp.collect.search import SIMILARITIES, FaissIndex, nearest, recall, similarities
from bilrp.collect.store import Store
from tests import nets
from tests.conftest import ROOT

RULES = bilrp.Gamma(0.1)


def model(seed: int = 0) -> torch.nn.Module:
    return nets.cnn(seed).float().requires_grad_(False)


def inputs(n: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def same(a: Store, b: Store) -> bool:
    """Whether two stores hold the same numbers, factors included."""
    equal = torch.equal(a.features(), b.features()) and a.bad == b.bad
    if a.about.factors != "none":
        pairs = ((a.factor(i), b.factor(i)) for i in range(len(a)) if i not in a.bad)
        equal &= all(torch.equal(f.values, g.values) and f.owners == g.owners for f, g in pairs)
    return equal and a.about == b.about


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("whole") / "store"
    return build(path, inputs(), model(), RULES, "exact", chunk=3)


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(whole.path, tmp_path / "store")
    return tmp_path / "store"


def again(path: Path, **options) -> Store:
    """The build that made `whole`, or one that differs."""
    wanted = dict(inputs=inputs(), model=model(), rules=RULES, factors="exact", chunk=3)
    return build(path, **{**wanted, **options})


def test_features_are_the_models_and_factors_are_the_engines(whole):
    net, x = model(), inputs()
    torch.testing.assert_close(whole.features(), net(x).flatten(1))
    kept = whole.factor(2).explain(whole.factor(7))
    made = bilrp.explain(net, x[2], x[7], RULES)
    assert torch.equal(kept.relevance, made.relevance)
    assert torch.equal(kept.ledger, made.ledger)
    assert whole.factor(2).identity == bilrp.factor(net, x[2], RULES).identity


def test_a_store_without_factors_makes_them_on_demand(tmp_path):
    built = build(tmp_path, inputs(), model(), RULES, chunk=4)
    e = built.factor(1).explain(built.factor(2))
    assert torch.equal(e.relevance, bilrp.explain(model(), *inputs()[[1, 2]], RULES).relevance)
    with pytest.raises(StoreError, match="model=, rules=, inputs="):
        Store(tmp_path).factor(1)
    with pytest.raises(WrongStore, match="another model"):
        Store(tmp_path, model(1))
    with pytest.raises(WrongStore, match=r"rules .*gamma=0\.1"):
        Store(tmp_path, model(), bilrp.Gamma(0.2))
    with pytest.raises(WrongStore, match="other inputs"):
        Store(tmp_path, model(), RULES, Tensors.of(inputs(9)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(model=model(1)), "the model is another"),
        (dict(rules=bilrp.Gamma(0.2)), r"gamma=0\.1.* there, .*gamma=0\.2.* here"),
        (dict(inputs=inputs(9)), "number of inputs: 10 there, 9 here"),
        (dict(inputs=inputs(10, seed=1)), "0 has changed"),
        (dict(inputs=Tensors.of(inputs(), list("abcdefghij"))), "other names"),
        (dict(inputs=torch.rand(10, 3, 24, 24)), "shape of an input"),
        (dict(factors=None), "kept factors: exact there, none here"),
        (dict(patch=4), "patch: 8 there, 4 here"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_store_of_something_else_is_refused_and_left_alone(store, whole, change, said):
    with pytest.raises(WrongStore, match=said):
        again(store, **change)
    assert same(Store(store), whole)


def test_a_damaged_chunk_is_found_named_and_made_anew(store, whole, capsys):
    victim = store / "arrays/features/c/1/0"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 255
    victim.write_bytes(content)
    chunks = (store / "arrays/factors/00003/0/values/c").rglob("*")
    next(p for p in chunks if p.is_file()).unlink()
    assert Store(store).check() == [1, 3]
    with pytest.raises(Damaged, match=r"chunk 1 .*\(3 to 5\) is damaged: run the same build"):
        nearest(Store(store), inputs().new_zeros(32))
    assert same(again(store), whole)
    assert Store(store).check() == []
    said = "".join(capsys.readouterr())
    assert "chunk 1" in said
    assert "chunk 3" in said
    assert "chunk 0" not in said


def test_only_what_is_missing_is_made(store, whole):
    record_path(store, 2).write_text("{half a rec")
    kept = record_path(store, 1).stat().st_mtime_ns
    assert Store(store).missing == [2]
    with pytest.raises(StoreError, match="not complete: 1 of 4 chunks"):
        Store(store).features()
    assert same(again(store), whole)
    assert record_path(store, 1).stat().st_mtime_ns == kept


def test_a_build_touches_nothing_that_is_not_its_own(tmp_path, whole, store):
    theirs = ["download.partial", "arrays/results.npy", f"a/b.{'0' * 32}.partial", "store.json"]
    for n, name in enumerate([*theirs, "lock", "builder.json"]):
        folder = tmp_path / f"folder {n}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(StoreError, match=r"is no store|not that of a store"):
            again(folder)
        assert [p for p in folder.rglob("*") if p.is_file()] == [folder / name]
        assert (folder / name).read_text() == "mine"
    with pytest.raises(StoreError, match="is a file"):
        again(tmp_path / "folder 0" / "download.partial")
    # in a store: of what nobody knows nothing is removed, whether the build is refused or not
    others = [store / "x.partial", store / "mine" / f"x.{'0' * 32}.partial"]
    halves = [store / f"{name}.{'0' * 32}.partial" for name in ("store.json", "records/1.json")]
    for path in (*others, *halves):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with pytest.raises(WrongStore):
        again(store, inputs=inputs(9))
    assert all(p.exists() for p in (*others, *halves))
    assert same(again(store), whole)
    assert all(p.exists() for p in others)
    assert not any(p.exists() for p in halves)


def test_what_a_build_left_that_was_killed_at_once_is_taken_up(tmp_path, whole):
    for name in ("lock", "builder.json", f"store.json.{'0' * 32}.partial"):
        (tmp_path / name).touch()
    assert same(again(tmp_path), whole)
    shutil.rmtree(tmp_path / "arrays")  # or killed right after its manifest
    shutil.rmtree(tmp_path / "records")
    (tmp_path / "names.json").unlink()
    assert same(again(tmp_path), whole)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(factors=0), "rank >= 1"),
        (dict(factors=True), "rank >= 1"),
        (dict(factors="small"), "rank >= 1"),
        (dict(factors=Basis(torch.eye(3))), "of 3 features, the model makes 32"),
        (dict(patch=0), "patch must be"),
        (dict(patch=7), "does not divide"),
        (dict(rules={"no layer": bilrp.Gamma(0.1)}), "no layer"),
    ],
    ids=str,
)
def test_a_wrong_option_does_not_stand_in_the_way_of_the_right_one(tmp_path, whole, wrong, said):
    with pytest.raises(ValueError, match=said):
        again(tmp_path, **wrong)
    assert same(again(tmp_path), whole)


def test_names_that_are_damaged_are_found_and_written_anew(store, whole):
    names = store / "names.json"
    for content in (json.dumps(whole.names[::-1]), '["0", "1', None):
        names.unlink()
        if content is not None:
            names.write_text(content)
        with pytest.raises(StoreError, match="run the same build again"):
            Store(store)
        assert same(again(store), whole)
        assert Store(store).names == whole.names


@pytest.mark.parametrize("spoiled", ["", "features", "factors", "factors/00001", "gone"])
def test_metadata_that_are_damaged_are_made_anew(store, whole, spoiled):
    file = store / "arrays" / spoiled / "zarr.json"
    if spoiled == "gone":
        shutil.rmtree(store / "arrays")
    else:
        file.write_text("{")
    if spoiled in ("features", "gone"):
        with pytest.raises(Damaged, match="run the same build again"):
            Store(store).features()
    assert same(again(store), whole)
    assert Store(store).check() == []


def test_a_damaged_basis_is_never_used_and_is_mended(whole, tmp_path):
    basis = common_basis([whole.factor(i) for i in range(4)], 12)
    good = again(tmp_path, factors=basis)
    arrays = zarr.open_group(tmp_path / "arrays", mode="r+")
    arrays["basis"][0] = -3 * basis.rows[0].numpy()
    left = Store(tmp_path)
    for _ in range(2):
        with pytest.raises(Damaged, match=r"the basis of .* run the same build again"):
            left.factor(0)
    assert left.check() == [0, 1, 2, 3]
    made = record_path(tmp_path, 0).stat().st_mtime_ns
    assert same(again(tmp_path, factors=basis), good)
    assert record_path(tmp_path, 0).stat().st_mtime_ns == made  # the chunks were whole
    shutil.rmtree(tmp_path / "arrays" / "basis")
    with pytest.raises(Damaged, match="basis"):
        Store(tmp_path).factor(0)
    assert same(again(tmp_path, factors=basis), good)


def test_the_rules_of_a_store_are_not_replaced_by_default_ones(tmp_path):
    x = Tensors.of(inputs())
    build(tmp_path, x, model(), RULES, chunk=4)
    with pytest.raises(WrongStore, match=r"gamma=0\.1.*Store\(\.\.\., rules=\)"):
        Store(tmp_path, model(), inputs=x).factor(0)
    built = build(tmp_path / "default", x, model(), chunk=4)
    made = Store(tmp_path / "default", model(), inputs=x).factor(-1)
    assert made.identity.rules == built.about.identity.rules


def test_the_newest_recipe_counts_and_none_keeps_it(store):
    again(store, recipe={"folder": "old"})
    again(store)
    assert Store(store).about.recipe == {"folder": "old"}
    with pytest.raises(WrongStore):
        again(store, inputs=inputs(10, seed=1), recipe={"folder": "another's"})
    assert again(store, recipe={"folder": "new"}).about.recipe == {"folder": "new"}


def test_two_builders_and_one_is_told(store, whole):
    with builder(store), pytest.raises(StoreBusy, match=f"by process {os.getpid()} on"):
        again(store)
    assert same(again(store), whole)


def test_a_full_disk_harms_nothing(tmp_path, whole, monkeypatch):
    real = zarr.storage._local._put

    def put(path, value, exclusive=False):
        if "factors/00002/1" in path.as_posix():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, value, exclusive)

    monkeypatch.setattr(zarr.storage._local, "_put", put)
    with pytest.raises(StoreError, match=r"is full: chunk \d was not written.*whole.*goes on"):
        again(tmp_path)
    monkeypatch.undo()
    half = Store(tmp_path)
    assert half.missing == [2, 3]
    assert half.check() == []
    assert same(again(tmp_path), whole)


@pytest.mark.skipif(
    not (sys.platform == "linux" and os.geteuid() == 0), reason="mounting needs root"
)
def test_a_disk_that_is_really_full(tmp_path, whole):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        with pytest.raises(StoreError, match="is full"):
            again(tmp_path / "store")
        assert Store(tmp_path / "store").check() == []
        bigger = ["mount", "-o", "remount,size=16m", str(tmp_path)]
        subprocess.run(bigger, capture_output=True, check=True)
        assert same(again(tmp_path / "store"), whole)
    finally:
        subprocess.run(["umount", str(tmp_path)], capture_output=True, check=True)


KILLED = """
import os, pathlib, random, signal, sys, time
import torch
torch.set_num_threads(1)
from tests.test_collect import Store, build, inputs, model, same, RULES

folder, rounds = sys.argv[1], int(sys.argv[2])
net, x = model(), inputs(16)

def made(name):
    return build(f"{folder}/{name}", x, net, RULES, "exact" if name[0] == "f" else None, chunk=2)

def child(name):
    pid = os.fork()
    if pid == 0:
        made(name)
        os._exit(0)
    return pid

# The parent builds nothing before the last fork: a fork must not inherit threads at work.
random.seed(0)
for kind in "pf":
    os.waitpid(child(kind + "whole"), 0)
for n in range(rounds):
    kind = "f" if n % 4 == 0 else "p"
    # At a random moment, by what is done and not by the clock: the machine may be busy.
    enough, records = random.randrange(8), pathlib.Path(folder, f"{kind}{n}", "records")
    pid = child(f"{kind}{n}")
    while len(list(records.glob("*.json"))) < enough:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
unfinished = 0
for n in range(rounds):
    kind = "f" if n % 4 == 0 else "p"
    if os.path.exists(f"{folder}/{kind}{n}/names.json"):
        left = Store(f"{folder}/{kind}{n}")
        assert left.check() == [], n
        unfinished += 0 < len(left.missing) < left.about.chunks
    assert same(made(f"{kind}{n}"), Store(f"{folder}/{kind}whole")), n
    assert not list(pathlib.Path(folder, f"{kind}{n}").rglob("*.partial"))
print("unfinished", unfinished)
assert unfinished >= rounds // 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.weights  # for its time, ten seconds and more
def test_killed_twenty_times_a_store_is_whole_and_equal(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), "20"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools")))}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_threads_and_a_cluster_give_the_same_store(whole, tmp_path):
    from distributed import Client, LocalCluster

    assert same(again(tmp_path / "threads", scheduler="threads", workers=2), whole)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        assert same(again(tmp_path / "client", scheduler=client), whole)
        address = cluster.scheduler_address
        assert same(again(tmp_path / "address", scheduler=address, model=model), whole)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(whole, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = list(client.run(os.getpid).values())
        part = inputs().repeat(4, 1, 1, 1)  # enough chunks for one to be in work

        def kill_one() -> None:
            while not list(tmp_path.glob("store/records/*.json")):
                time.sleep(0.005)
            os.kill(workers[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        built = again(tmp_path / "store", inputs=part, scheduler=client, model=model)
        killer.join()
        assert workers[0] not in client.run(os.getpid).values()
    assert built.missing == []
    assert built.check() == []
    assert same(built, again(tmp_path / "alone", inputs=part))


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("bilrp.collect.building.ANSWER", 0.2)
    for address in ("tcp://127.0.0.1:9", "no address"):
        with pytest.raises(StoreError, match=f"no scheduler of Dask answers at '{address}'"):
            again(tmp_path, scheduler=address)


def photos(folder: Path, count: int = 6) -> Photos:
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture, and not said to be one")
    return Photos.of(folder, 16)


def test_a_bad_file_costs_nothing_else_and_is_tried_again_when_mended(tmp_path):
    (tmp_path / "photos").mkdir()
    found = photos(tmp_path / "photos")
    bad = tmp_path / "photos" / "2.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:300])
    (tmp_path / "photos" / "4.png").write_text("hello")
    Image.new("RGB", (100, 7)).save(tmp_path / "photos" / "5.png")
    built = build(tmp_path / "store", found, model(), RULES, chunk=4)
    assert set(built.bad) == {2, 4, 5}
    assert "cannot be read" in built.bad[2]
    assert "not a picture" in built.bad[4]
    assert "too small: 7 pixels where at least 8" in built.bad[5]
    hits = nearest(built, built.features()[1], 3)
    assert set(hits.indices[0].tolist()) == {0, 1, 3}
    with pytest.raises(ValueError, match="from 1 to the 3 inputs"):
        nearest(built, built.features()[1], 4)
    bad.write_bytes(good)
    assert set(build(tmp_path / "store", found, model(), RULES, chunk=4).bad) == {4, 5}
    shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photos" / "1.png")
    with pytest.raises(WrongStore, match=r"1\.png has changed"):
        build(tmp_path / "store", found, model(), RULES, chunk=4)
    with pytest.raises(StoreError, match=r"1\.png has changed"):
        built.factor(1)


def test_nothing_that_can_be_used_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(StoreError, match="none of the 1 inputs"):
        build(tmp_path / "store", Photos.of(tmp_path), model(), RULES)
    with pytest.raises(ValueError, match="suffix of a picture"):
        Photos.of(tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="no folder"):
        Photos.of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="training mode"):
        build(tmp_path / "store", inputs(), model().train(), RULES)
    with pytest.raises(StoreError, match="is no store"):
        Store(tmp_path)


def test_photos_are_turned_as_their_exif_says_and_cut_to_the_middle(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown with its left side on top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    x = read_photo(tmp_path / "turned.png", 20)
    assert x.shape == (3, 20, 20)
    assert float(x[0, :, 12:].mean()) == 1
    assert float(x[0, :, :8].mean()) == 0
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert float(read_photo(tmp_path / "clear.png", 20).min()) == 1
    Image.fromarray(np.full((20, 20), 60000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadInput, match="8-bit"):
        read_photo(tmp_path / "deep.png", 20)


@pytest.mark.parametrize("how", ["float16", 4, "basis"])
def test_small_factors_keep_their_bound_and_their_ledger_adds_up(whole, tmp_path, how):
    factors = [whole.factor(i) for i in range(4)]
    if how == "basis":
        how = common_basis(factors, 12)
    packed = [pack(f, how) for f in factors]
    assert packed[0].bytes < 0.75 * pack(factors[0]).bytes
    small = [p.factor() for p in packed]
    for i in range(4):
        for j in range(4):
            true, e = factors[i].explain(factors[j]), small[i].explain(small[j])
            error = float((e.relevance - true.relevance).double().norm())
            assert error <= packed[i].bound(packed[j]) * (1 + 1e-3)
            assert e.similarity == true.similarity
            assert float(e.ledger.sum()) == pytest.approx(true.similarity, rel=1e-5)
            assert "packing" in e.owners
    built = build(tmp_path, inputs(), model(), RULES, how, chunk=3)
    assert torch.equal(Store(tmp_path).factor(1).values, small[1].values)
    assert built.packed(1).error == pytest.approx(packed[1].error)
    if isinstance(how, Basis):
        with pytest.raises(WrongStore, match="kept factors: basis 12"):
            build(tmp_path, inputs(), model(), RULES, common_basis(factors[:2], 12), chunk=3)


def test_a_bound_is_what_the_chapter_says(whole):
    a, b = (pack(whole.factor(i), 2) for i in (0, 1))
    for p, i in ((a, 0), (b, 1)):
        exact = whole.factor(i).dense().double()
        assert p.norm == pytest.approx(float(torch.linalg.svdvals(exact)[0]))
        assert p.error == pytest.approx(float((p.factor().dense().double() - exact).norm()))
    expected = a.error * b.norm + a.norm * b.error + a.error * b.error
    assert a.bound(b) == pytest.approx(expected, rel=1e-12)
    assert 0 < a.error < a.norm


@pytest.mark.parametrize("how", ["exact", "float16", 4, "basis"])
def test_factors_of_a_network_without_biases_can_be_small(tmp_path, how):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.ReLU())
    net = net.eval().requires_grad_(False)
    factors = bilrp.factor(net, list(inputs(3)), RULES)
    assert len(factors[0].absorbed) == 0
    how = common_basis(factors, 6) if how == "basis" else how
    built = build(tmp_path, inputs(3), net, RULES, how)
    assert built.check() == []
    e = built.factor(0).explain(built.factor(1))
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-5)


def test_more_rank_is_less_error_and_full_rank_is_exact(whole):
    f = whole.factor(0)
    errors = [pack(f, rank).error for rank in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    full = pack(f, 4)
    assert full.error < 1e-3 * full.norm
    assert pack(f).error == 0
    with pytest.raises(ValueError, match="how must be"):
        pack(f, "small")
    with pytest.raises(ValueError, match="rank must be"):
        common_basis([f], 1000)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "-l2"])
def test_search_finds_what_all_similarities_say(whole, similarity):
    features = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    query = features[:7] + 0.3
    truth = similarities(query, features, similarity).topk(5, 1)
    for block in (64, 4096):
        bilrp.collect.search.BLOCK = block
        hits = nearest(features, query, 5, similarity)
        assert torch.equal(hits.indices, truth.indices)
        torch.testing.assert_close(hits.scores, truth.values)
    flat = FaissIndex(features, similarity, "Flat").nearest(query, 5)
    assert torch.equal(flat.indices, truth.indices)
    torch.testing.assert_close(flat.scores, truth.values, atol=1e-4, rtol=1e-4)
    assert recall(FaissIndex(features, similarity).nearest(query, 5).indices, truth.indices) > 0.8
    mine = nearest(whole, whole.query(inputs()[4]), 3, similarity, without=[4])
    assert 4 not in mine.indices
    by_hand = similarities(whole.features()[4][None], whole.features(), similarity)[0]
    by_hand[4] = -torch.inf
    assert torch.equal(mine.indices[0], by_hand.topk(3).indices)


def test_a_search_refuses_what_does_not_fit(whole):
    with pytest.raises(ValueError, match="similarity must be"):
        nearest(whole, torch.zeros(32), 3, "l2")
    with pytest.raises(ValueError, match="31 features, the collection 32"):
        nearest(whole, torch.zeros(31))


def test_what_is_not_finite_is_refused(whole):
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for value in (torch.nan, torch.inf):
        for similarity in SIMILARITIES:
            with pytest.raises(ValueError, match="the query holds NaN"):
                nearest(features, torch.full((8,), value), 3, similarity)
            spoiled = features.clone()
            spoiled[7, 0] = value
            with pytest.raises(ValueError, match="input 7 are not finite"):
                nearest(spoiled, features[0], 3, similarity)
            assert 7 not in nearest(spoiled, features[0], 3, similarity, without=[7]).indices
    with pytest.raises(ValueError, match=r"input 0 are not finite.*too large"):
        nearest(features.abs() * 1e30, features[:1].abs() * 1e30)
    with pytest.raises(ValueError, match=r"got 2\.5"):
        nearest(features, features[0], 2.5)


@pytest.mark.parametrize("size", [1e-40, 1e-14, 1.0, 1e37])
def test_a_vector_has_the_cosine_1_with_itself_however_small(size):
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * size
    torch.testing.assert_close(similarities(x, x, "cosine").diag(), torch.ones(4))
    assert similarities(0 * x, x, "cosine").abs().max() == 0


def test_a_record_that_lacks_something_does_not_count(store):
    record_path(store, 0).write_text('{"sha256": {}}')
    assert Record.read(store, 0) is None
