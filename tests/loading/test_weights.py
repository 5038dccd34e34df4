"""Tensors in and out: strict with one full report, nothing changed on failure, no memory beyond the model's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from phonograph import MimiConfig, MimiModel
from phonograph.errors import CheckpointError, OutputError
from phonograph.loading.weights import LoadRules, Renaming, assign, load_strict, open_tensors, save_tensors

CPU = torch.device("cpu")
PLAIN = Renaming({})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2, bias=False)
        self.register_buffer("count", torch.zeros(2))


def net(device: str = "meta") -> Net:
    with torch.device(device):
        return Net()


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.randn(value.shape) for name, value in net("cpu").state_dict().items()}


def test_fills_a_model_on_the_meta_device(tmp_path: Path) -> None:
    stored = tensors()
    save_file(stored, tmp_path / "x.safetensors")
    model = net()
    load_strict(model, open_tensors([tmp_path / "x.safetensors"]), PLAIN, CPU)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name])
    assert isinstance(model.first.weight, nn.Parameter)
    assert model.first.weight.requires_grad
    assert "count" in dict(model.named_buffers())
    model.first(torch.zeros(1, 3)).sum().backward()


def test_types_are_the_models(tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in tensors().items()}, tmp_path / "x.safetensors")
    model = net().to(torch.float64)
    load_strict(model, open_tensors([tmp_path / "x.safetensors"]), PLAIN, CPU)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64}


def test_every_fault_is_in_one_report_and_the_model_stays(tmp_path: Path) -> None:
    stored = tensors()
    stored["first.wait"] = stored.pop("first.weight")
    stored["second.weight"] = torch.zeros(4, 2)
    save_file(stored, tmp_path / "x.safetensors")
    model = net("cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_strict(model, open_tensors([tmp_path / "x.safetensors"]), PLAIN, CPU)
    message = str(caught.value)
    for part in (
        "expected the tensors of Net in ",
        "x.safetensors, got 1 missing (first.weight); 1 unexpected (first.wait); ",
        "1 of another shape (second.weight [4, 2] instead of [[2, 4]]); ",
        "check that config.json belongs to these weights",
    ):
        assert part in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_report_is_cut(tmp_path: Path) -> None:
    save_file({f"x{number}": torch.zeros(1) for number in range(8)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"8 unexpected \(x0, x1, x2, x3, x4, and 3 more\)"):
        load_strict(net(), open_tensors([tmp_path / "x.safetensors"]), PLAIN, CPU)


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.head = nn.Linear(2, 2)


class TestRules:
    """What a file may lack or hold beyond the model; names in rules are the model's."""

    HEAD = LoadRules("net", may_be_missing=lambda name: name.startswith("head."))

    @staticmethod
    def load(model: nn.Module, stored: dict[str, torch.Tensor], path: Path, rules: LoadRules) -> list[str]:
        save_file(stored, path / "x.safetensors")
        return load_strict(model, open_tensors([path / "x.safetensors"]), PLAIN, CPU, rules)

    def test_a_file_of_the_base_into_a_headed_model(self, tmp_path: Path) -> None:
        with torch.device("meta"):
            model = Headed()
        stored = tensors()
        assert self.load(model, stored, tmp_path, self.HEAD) == ["head.weight", "head.bias"]
        assert model.head.weight.is_meta
        assert all(torch.equal(value, stored[name]) for name, value in model.net.state_dict().items())

    def test_a_file_of_a_headed_model_into_the_base(self, tmp_path: Path) -> None:
        stored = {f"net.{name}": value for name, value in tensors().items()} | {"head.weight": torch.zeros(2, 2)}
        model = net()
        with pytest.raises(CheckpointError, match=r"1 unexpected \(head.weight\)"):
            self.load(model, stored, tmp_path, LoadRules("net"))
        rules = LoadRules("net", not_needed=lambda name: name.startswith("head."))
        assert self.load(model, stored, tmp_path, rules) == []
        assert torch.equal(model.first.weight, stored["net.first.weight"])

    def test_what_may_be_missing_may_not_be_wrong(self, tmp_path: Path) -> None:
        stored = tensors() | {"head.weight": torch.zeros(3, 3), "head.bias": torch.ones(2)}
        with torch.device("meta"):
            model = Headed()
        with pytest.raises(CheckpointError, match=r"1 of another shape \(head.weight \[3, 3\] instead of \[\[2, 2\]\]\)"):
            self.load(model, stored, tmp_path, self.HEAD)
        rules = LoadRules("net", self.HEAD.may_be_missing, may_differ=self.HEAD.may_be_missing)
        assert self.load(model, stored, tmp_path, rules) == ["head.weight"]
        assert torch.equal(model.head.bias, torch.ones(2))

    def test_nothing_else_is_let_through(self, tmp_path: Path) -> None:
        stored = tensors()
        del stored["second.weight"]
        with torch.device("meta"), pytest.raises(CheckpointError, match=r"got 1 missing \(net.second.weight\);"):
            self.load(Headed(), stored, tmp_path, self.HEAD)

    @pytest.mark.parametrize("there", [("first.weight",), ("first.weight", "third.weight"), ("third.weight",)], ids=str)
    def test_tied(self, there: tuple[str, ...], tmp_path: Path) -> None:
        stored = tensors()
        value = stored.pop("first.weight")
        stored |= {name: value.clone() for name in there}
        if len(there) == 2:
            stored["third.weight"] += 1  # the source counts
        with torch.device("meta"):
            model = Net()
            model.third = nn.Linear(3, 4, bias=False)
        rules = LoadRules(tied={"third.weight": "first.weight"})
        assert self.load(model, stored, tmp_path, rules) == []
        assert torch.equal(model.first.weight, value)
        assert model.third.weight.is_meta, "tying them is left to the model"

    def test_neither_of_two_tied(self, tmp_path: Path) -> None:
        stored = tensors()
        del stored["first.weight"]
        model = net()
        model.third = nn.Linear(3, 4, bias=False, device="meta")
        with pytest.raises(CheckpointError, match=r"got 1 missing \(first.weight\)"):
            self.load(model, stored, tmp_path, LoadRules(tied={"third.weight": "first.weight"}))


def test_assigned_tensors_keep_the_layout_of_the_layer() -> None:
    layer = nn.Conv1d(3, 4, 5, device="meta")
    layer.weight.data = layer.weight.data.transpose(1, 2).contiguous().transpose(1, 2)
    value = torch.randn(4, 3, 5)
    assign(layer, "weight", value)
    assert torch.equal(layer.weight, value)
    assert layer.weight.stride() == (15, 1, 3)
    assert isinstance(layer.weight, nn.Parameter)


class TestRenaming:
    TABLE = Renaming({"old.{i}.w": "new.{i}.weight", "both": ("first.weight", "second.weight")})

    def test_names(self) -> None:
        assert self.TABLE.new_names("old.12.w") == ("new.12.weight",)
        assert self.TABLE.new_names("both") == ("first.weight", "second.weight")
        for other in ("old.1.2.w", "xold.1.w", "old.1.w.x", "old-1.w", "oldX1Xw"):
            assert self.TABLE.new_names(other) == (other,)

    def test_fused_tensors_are_split(self, tmp_path: Path) -> None:
        stored = tensors()
        stored["fused"] = torch.randn(8, 3)
        del stored["first.weight"]
        save_file(stored, tmp_path / "x.safetensors")
        model = net()
        model.third = nn.Linear(3, 4, bias=False, device="meta")
        table = Renaming({"fused": ("third.weight", "first.weight")}, lambda fused: fused.split(4))
        load_strict(model, open_tensors([tmp_path / "x.safetensors"]), table, CPU)
        assert torch.equal(torch.cat([model.third.weight, model.first.weight]), stored["fused"])
        stored["fused"] = torch.randn(7, 3)
        save_file(stored, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"fused \[7, 3\] instead of \[\[4, 3\], \[4, 3\]\]"):
            load_strict(model, open_tensors([tmp_path / "x.safetensors"]), table, CPU)


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no tensors here", b"\xff" * 100])
    def test_not_safetensors(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a safetensors file, got .*which can't be read: .*; fetch it again"):
            open_tensors([tmp_path / "model.safetensors"])

    @pytest.mark.parametrize("kept", [4, 50, -1])
    def test_cut(self, tmp_path: Path, kept: int) -> None:
        save_file(tensors(), tmp_path / "x.safetensors")
        whole = (tmp_path / "x.safetensors").read_bytes()
        (tmp_path / "x.safetensors").write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match="can't be read"):
            open_tensors([tmp_path / "x.safetensors"])

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").mkdir()
        with pytest.raises(CheckpointError, match="can't be read"):
            open_tensors([tmp_path / "model.safetensors"])


class TestSave:
    def test_any_layout(self, tmp_path: Path) -> None:
        stored = {"turned": torch.randn(3, 4).T, "grad": torch.randn(2, requires_grad=True), "one": torch.tensor([1])}
        save_tensors(tmp_path / "x.safetensors", stored)
        loaded = load_file(tmp_path / "x.safetensors")
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        save_tensors(path, {"a": torch.ones(3)})
        before = path.read_bytes()
        with pytest.raises(AttributeError):
            save_tensors(path, {"a": None})  # type: ignore[dict-item]
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"cannot write .*No such file or directory; choose another place"):
            save_tensors(tmp_path / "no" / "x.safetensors", {"a": torch.ones(3)})

    def test_a_file_where_a_folder_is_wanted(self, tmp_path: Path, mini: MimiModel) -> None:
        (tmp_path / "x").write_text("a file")
        with pytest.raises(OutputError, match=r"cannot write .*File exists; choose another place"):
            mini.save_pretrained(tmp_path / "x")


MEASURE = """
import sys, threading, time
from phonograph import MimiModel

def own_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks.append(own_bytes())
        time.sleep(0.001)

MimiModel.from_pretrained("mimi-mini")  # whatever torch keeps for its first use
before, peaks, done = own_bytes(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = MimiModel.from_pretrained(sys.argv[1])
done.set()
watcher.join()
size = sum(tensor.nbytes for tensor in model.state_dict().values())
print(size, max(peaks) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_loading_is_the_models_own_size(tmp_path: Path) -> None:
    """About 200 MB; the file's pages belong to the system's cache, everything else counts."""
    MimiModel(MimiConfig(num_hidden_layers=1)).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], check=True, capture_output=True, text=True)
    size, peak = map(int, done.stdout.split())
    assert size > 190e6
    assert 0.5 * size < peak < 1.2 * size
