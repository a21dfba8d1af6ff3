"""`ntt-jax weights` and `ntt-jax doctor`."""

import pytest

from ntt_jax.cli import main
from ntt_jax.hub import cache, system

MODEL = "dinov2_vits14"


def test_weights_from_list_to_verify(hub, capsys):
    assert main(["weights", "path", MODEL]) == 2
    assert f"not here yet; `ntt-jax weights get {MODEL}`" in capsys.readouterr().err
    assert main(["weights", "get", "dinov2_smal"]) == 2
    assert "did you mean dinov2_vits14" in capsys.readouterr().err
    hub.repositories["me/mine"] = hub.repositories["facebook/dinov2-small"]
    assert main(["weights", "get", MODEL, "me/mine"]) == 0
    path = cache.named(MODEL).path
    assert str(path) in capsys.readouterr().out
    assert main(["weights", "path", MODEL]) == 0 and capsys.readouterr().out.strip() == str(path)
    assert main(["weights", "list"]) == 0
    listed = capsys.readouterr().out
    assert len([line for line in listed.splitlines() if "Apache-2.0" in line]) == 18 and "me/mine" in listed
    assert main(["weights", "verify"]) == 0
    assert capsys.readouterr().out.count(": ok") == len(cache.entries()) == 2  # one was checked by name, one by hints
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["weights", "verify"]) == 2
    captured = capsys.readouterr()
    assert "DAMAGED" in captured.out and f"delete {path}" in captured.err


def test_doctor_tells_what_a_bug_report_needs_and_no_secret(hub, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("//", "//user:secret@"))
    monkeypatch.setattr(system, "TIMEOUT", 0.5)
    assert main(["doctor"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert "secret" not in str(lines) and str(tmp_path) not in str(lines)
    assert lines["cache"].strip().startswith("~/cache/weights: ") and lines["hub token"].strip() == "there is one"
    assert "jax 0." in lines["packages"] and "cpu" in lines["device"] and "answers" in lines["network"]
    assert "test: " in lines["extras"]


@pytest.mark.parametrize("offline", [False, True])
def test_doctor_without_a_network(hub, capsys, monkeypatch, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["doctor"]) == 0
    words = "HF_HUB_OFFLINE is set" if offline else "no connection"
    assert f"http://127.0.0.1:9: not reachable: {words}" in capsys.readouterr().out
