"""A bundle is whole or refused: who loads one gets exactly what training wrote, or the name of the file at fault."""

from __future__ import annotations

import hashlib
import json
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import FILES, edit_manifest, sign

from sentiment.bundle import Bundle, write_bundle
from sentiment.errors import BundleError

Make = Callable[..., Bundle]


def test_round_trip(make_bundle: Make, tmp_path: Path) -> None:
    model = make_bundle()
    weights = {name: torch.rand_like(weight) for name, weight in model.weights().items()}
    written = write_bundle(
        tmp_path / "other",
        config=model.config,
        weights=weights,
        tokenizer=model.tokenizer(),
        metrics={"validation_accuracy": 0.75},
        card="# A café of its own\n",
    )
    read = Bundle.open(str(tmp_path / "other"))
    assert read.model_id == written.model_id != model.model_id
    assert read.model_id.startswith("small-")
    assert read.config == model.config
    assert read.tokenizer().tokens == model.tokenizer().tokens
    assert read.weights().keys() == weights.keys()
    assert all(torch.equal(read.weights()[name], weights[name]) for name in weights)
    assert json.loads((read.path / "metrics.json").read_text()) == {"validation_accuracy": 0.75}
    assert (read.path / "README.md").read_text(encoding="utf-8") == "# A café of its own\n"


def test_folder_holds_what_the_contract_says(make_bundle: Make) -> None:
    assert sorted(file.name for file in make_bundle().path.iterdir()) == sorted([*FILES, "MANIFEST.json"])


def test_no_pickle_in_the_folder(make_bundle: Make) -> None:
    for file in make_bundle().path.iterdir():
        content = file.read_bytes()
        assert content[:2] != b"PK", f"{file.name}: a zip as torch.save writes it"
        with pytest.raises(ValueError):  # pickletools has nothing narrower
            list(pickletools.genops(content))


def test_model_id_follows_from_what_decides_a_prediction(make_bundle: Make) -> None:
    first = make_bundle("first")
    assert make_bundle("again", metrics={"validation_accuracy": 0.9}).model_id == first.model_id
    assert make_bundle("other weights", seed=1).model_id != first.model_id
    assert make_bundle("other shape", hidden_dim=8).model_id != first.model_id


def test_writing_again_replaces(make_bundle: Make) -> None:
    first = make_bundle(seed=0)
    second = make_bundle(seed=1)
    assert second.path == first.path
    assert Bundle.open(second.path).model_id == second.model_id != first.model_id


def test_interrupted_rewrite_is_no_bundle(make_bundle: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second training that dies half-way must not leave new weights under the old manifest."""
    path = make_bundle(seed=0).path

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sentiment.tokenizers.WordTokenizer.save", die)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(seed=1)
    with pytest.raises(BundleError, match=r"MANIFEST\.json is missing"):
        Bundle.open(path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"no bundle at .*file"):
        Bundle.open(tmp_path / "file")


def test_a_runs_folder_is_no_bundle_but_has_one(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle()
    bundle.path.rename(tmp_path / "bundle")
    with pytest.raises(BundleError, match=rf"MANIFEST.json is missing: .*; did you mean {tmp_path}/bundle\?$"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.json"])
def test_missing_file_is_named(make_bundle: Make, name: str) -> None:
    path = make_bundle().path
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        Bundle.open(path)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_altered_byte_is_found(make_bundle: Make, name: str, where: str) -> None:
    path = make_bundle().path
    content = bytearray((path / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was altered"):
        Bundle.open(path)


@pytest.mark.parametrize("name", FILES)
def test_cut_file_is_found(make_bundle: Make, name: str) -> None:
    path = make_bundle().path
    content = (path / name).read_bytes()
    for rest in (content[:-1], content[: len(content) // 2], b""):
        (path / name).write_bytes(rest)
        with pytest.raises(BundleError, match=rf"{name} was altered"):
            Bundle.open(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights_under_a_matching_manifest(make_bundle: Make, keep: int) -> None:
    """The hash can agree where a half-copied file was signed anew; the reader of the file still refuses."""
    path = make_bundle().path
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:keep])
    sign(path, "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors can't be read"):
        Bundle.open(path).weights()


def test_damaged_tokenizer_under_a_matching_manifest(make_bundle: Make) -> None:
    path = make_bundle().path
    (path / "tokenizer.json").write_text("{}")
    sign(path, "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer .*tokenizer\.json"):
        Bundle.open(path).tokenizer()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: "),
        ({"surprise": 1}, "surprise: "),
        ({"max_length": 0}, "max_length: "),
        ({"model": {"kind": "transformer"}}, "model: .*'transformer'.*'rnn', 'bag'"),
    ],
)
def test_config_of_another_format(make_bundle: Make, change: dict[str, Any], message: str) -> None:
    path = make_bundle().path
    config = json.loads((path / "config.json").read_text())
    config["model"] |= change.pop("model", {})
    (path / "config.json").write_text(json.dumps(config | change))
    sign(path, "config.json")
    with pytest.raises(BundleError, match=rf"config\.json can't be read as BundleConfig: {message}") as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"files": {}}', b'{"name": "my-app", "version": 3}', b'{"model_id": 5}'],
)
def test_foreign_manifest(make_bundle: Make, content: bytes) -> None:
    path = make_bundle().path
    (path / "MANIFEST.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"MANIFEST\.json can't be read as Manifest"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", ".", "", "a\0b"])
def test_manifest_cannot_point_elsewhere(make_bundle: Make, name: str) -> None:
    """It comes from strangers: nothing outside the folder is opened, even if its hash is given rightly."""
    path = make_bundle().path
    (path.parent / "secret").write_bytes(b"")
    (path / "sub").mkdir()
    (path / "sub" / "file").write_bytes(b"")
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError):
        Bundle.open(path)


@pytest.mark.parametrize("name", FILES[:3])
def test_manifest_must_list_what_predicting_needs(make_bundle: Make, name: str) -> None:
    """Else a file could be swapped after it was taken off the list."""
    path = make_bundle().path
    edit_manifest(path, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BundleError, match=rf"MANIFEST\.json doesn't list {name}"):
        Bundle.open(path)


def test_altered_model_id(make_bundle: Make) -> None:
    path = make_bundle().path
    edit_manifest(path, lambda manifest: manifest.update(model_id="small-000000000000"))
    with pytest.raises(BundleError, match=r"MANIFEST\.json was altered: its model id"):
        Bundle.open(path)
