"""Networks out of pickles that come with code, none of which runs."""

import builtins
import io
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from diffusion_jax.pretrained.snapshot import read_snapshot
from tests.pretrained.test_weights import ARRAYS, Call, Storage, dumped, strides_of, tensor

CODE = "import os\nos.system('true')\nclass Conv2d: pass\n"


def saved(array):
    """Return a tensor as a plain pickle has it: its storage is a file of torch.save of its own."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, Storage("140", array, legacy=True), ["140"]]
    content = b"".join(map(dumped, parts)) + array.size.to_bytes(8, "little") + array.tobytes()
    return tensor(Call("torch.storage._load_from_bytes", content), array.shape, strides_of(array))


def parameter(array):
    return Call("torch._utils._rebuild_parameter", saved(array), False, OrderedDict())


def layer(kind, parameters=(), buffers=(), modules=(), **more):
    """Return a layer that came with its code."""
    state = {
        "training": False,
        "_parameters": OrderedDict({name: parameter(array) for name, array in dict(parameters).items()}, absent=None),
        "_buffers": OrderedDict({name: saved(array) for name, array in dict(buffers).items()}),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(modules),
        **more,
    }
    meta = {"type": "class", "version": 6, "module_src": CODE, "class_name": kind, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


class Made(Call):
    """A class by its name, which the pickler believes that it could call."""

    def __call__(self):
        raise AssertionError


class Plain:
    """A layer of PyTorch's own, or a subclass of dict, as a pickle makes and fills one."""

    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        return Made(self.name), (), self.state


WEIGHTS = {name.replace(".", "_"): array for name, array in ARRAYS.items() if array.dtype != np.int64}

ONE = np.ones(3, np.float32)


def snapshot():
    inner = layer("Conv2d", WEIGHTS, {"resample_filter": ARRAYS["conv.weight"]})
    listed = Plain("torch.nn.modules.container.ModuleDict", {"_modules": OrderedDict({"8x8_conv": inner, "off": None})})
    unet = layer("SongUNet", modules={"enc": listed}, act=Call("torch.nn.functional.silu"))
    keywords = {
        "img_resolution": 8,
        "channel_mult": [1, 2],
        "model_type": "SongUNet",
        "device": Call("torch.device", "cpu"),
    }
    net = layer("EDMPrecond", modules={"model": unet}, _init_kwargs=keywords, sigma_max=float("inf"))
    return {"ema": net, "loss_fn": Call("training.loss.EDMLoss"), "dataset_kwargs": {"path": "cifar10.zip"}}


def written(folder, tree):
    (folder / "a.pkl").write_bytes(dumped(tree))
    return folder / "a.pkl"


def test_a_network_is_its_tensors_by_name_and_how_it_was_built(tmp_path):
    found = read_snapshot(written(tmp_path, snapshot()))
    place = "ema.model.enc.8x8_conv."
    wanted = {f"{place}{name}": array for name, array in WEIGHTS.items()}
    wanted[f"{place}resample_filter"] = ARRAYS["conv.weight"]
    assert found.tensors.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(found.tensors[name], array)
    keywords = {"img_resolution": 8, "channel_mult": [1, 2], "model_type": "SongUNet"}
    assert found.built == {"ema": ("EDMPrecond", keywords)}


def test_dicts_of_other_classes_are_made_without_init_and_filled(tmp_path):
    """As in EasyDict, which pickle makes by __new__ alone; attributes set after leave the items."""
    pairs = b"".join(dumped(part)[2:-1] for item in snapshot().items() for part in item)
    content = pickle.PROTO + b"\x02cdnnlib.util\nEasyDict\n)" + pickle.NEWOBJ + b"(" + pairs + b"u"
    for more in (b"", dumped({"sealed": True})[2:-1] + pickle.BUILD):
        (tmp_path / "a.pkl").write_bytes(content + more + pickle.STOP)
        found = read_snapshot(tmp_path / "a.pkl")
        assert found.built["ema"][0] == "EDMPrecond" and len(found.tensors) == len(WEIGHTS) + 1


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "builtins.exec", "subprocess.call", "importlib.import_module"]
)
def test_nothing_that_a_file_asks_for_runs(tmp_path, monkeypatch, name):
    """Nor is anything imported, and what it is made to be is no thing that exists."""
    ran = []
    for home, function in ((os, "system"), (builtins, "eval"), (builtins, "exec")):
        monkeypatch.setattr(home, function, lambda *args: ran.append(args))
    tree = snapshot() | {"harm": Call(name, "import os"), "more": Plain(name, {"_modules": OrderedDict()})}
    before = set(sys.modules)
    path = written(tmp_path, tree)
    found = read_snapshot(path)
    assert len(found.tensors) == len(WEIGHTS) + 1
    assert not ran and set(sys.modules) == before


def test_what_a_file_does_to_a_name_ends_with_it(tmp_path):
    """A pickle that sets attributes of what it asked for changes nothing for the next."""
    for name in ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes", "a.b"):
        content = pickle.PROTO + b"\x02" + dumped(Call(name))[2:-1] + dumped({"state": 1, "__call__": 2})[2:-1] + b"b."
        (tmp_path / "harm.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="damaged|no networks"):
            read_snapshot(tmp_path / "harm.pkl")
    assert read_snapshot(written(tmp_path, snapshot())).built["ema"][0] == "EDMPrecond"


def looped():
    modules = OrderedDict()
    modules["again"] = Plain(
        "torch.nn.modules.container.Sequential", {"_modules": modules, "_buffers": {"b": saved(ONE)}}
    )
    return {"ema": modules["again"]}


def short():
    net = snapshot()
    inner = Call("torch.storage._load_from_bytes", b"\x80\x02}.")
    net["ema"].arguments[0]["state"]["_buffers"]["u"] = tensor(inner, (1,), (1,))
    return net


def beyond():
    net = layer("Linear", WEIGHTS)
    net.arguments[0]["state"]["_buffers"]["u"] = tensor(saved(ONE).arguments[0], (4,), (1,))
    return {"ema": net}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dumped([1]), "no networks by name; it is a pickle of something else"),
        (lambda: dumped({"ema": {"weight": saved(np.zeros(2, np.float32))}}), "no networks by name"),
        (lambda: dumped({"ema": layer("Identity")}), "no networks by name"),
        (lambda: dumped(snapshot())[:-40], "damaged or not whole"),
        (lambda: b"", "damaged or not whole"),
        (lambda: b"<html>", "damaged or not whole"),
        (lambda: dumped(short()), "is a pickle, not a file of torch.save"),
        (lambda: dumped(beyond()), "'ema.u' reaches beyond its storage"),
    ],
)
def test_broken_files_are_refused_with_a_reason(tmp_path, make, words):
    (tmp_path / "a.pkl").write_bytes(make())
    with pytest.raises(ValueError, match=words):
        read_snapshot(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="there is no file"):
        read_snapshot(tmp_path / "b.pkl")


def test_layers_within_themselves_end(tmp_path):
    assert set(read_snapshot(written(tmp_path, looped())).tensors) == {"ema.b"}


def test_torch_writes_what_is_read(tmp_path, monkeypatch):
    """Layers that pickle themselves with their code, as in NVIDIA's `persistence`."""
    torch = pytest.importorskip("torch")
    home = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise AssertionError('it ran')", vars(home))
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", home)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.ModuleDict({"8x8_conv": torch.nn.Conv2d(2, 3, 3), "norm": torch.nn.GroupNorm(1, 3)})
            self.register_buffer("freqs", torch.arange(4.0).half()[1:])
            self._init_kwargs = {"img_resolution": 8, "dtype": torch.float16}

        def __reduce__(self):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": CODE,
                "class_name": "Net",
                "state": super().__reduce__()[2],
            }
            return home._reconstruct_persistent_obj, (meta,)

    net = Net().requires_grad_(False)
    for protocol in (2, 4, 5):
        content = io.BytesIO()
        pickle.dump({"ema": net, "augment_pipe": None}, content, protocol=protocol)
        (tmp_path / "a.pkl").write_bytes(content.getvalue())
        found = read_snapshot(tmp_path / "a.pkl")
        assert found.built == {"ema": ("Net", {"img_resolution": 8})}
        wanted = {f"ema.{name}": value.numpy() for name, value in net.state_dict().items()}
        assert found.tensors.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found.tensors[name], array)
