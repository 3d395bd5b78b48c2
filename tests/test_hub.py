"""Reading a model and a dataset by their hub ids, by the real clients, from a hub of one that this file serves."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from small_world import arguments as small_world_arguments

from fairjax.hub import find
from fairjax.models.functional import num_params
from fairjax.pipeline import Pipeline

MODEL, COMMIT = "somebody/portraits", "0123456789abcdef0123456789abcdef01234567"


UNWANTED = (
    "unet/weights.bin", "v1-5-pruned.safetensors", "safety_checker/model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
)  # fmt: skip


def _digest(file, algorithm):
    return algorithm(file.read_bytes()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """What the clients ask for: the list of a revision's files, their heads, their bytes."""

    folder: Path
    asked: list[str]
    kind = "models"

    def log_message(self, *args):
        pass

    def _answer(self, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path.startswith(f"/api/{self.kind}/{MODEL}"):
            asked = re.search(r"/(?:revision|tree)/([^/]+)", path)
            if asked and asked[1] not in (COMMIT, "main"):
                return self._missing("RevisionNotFound")
            files = sorted(file for file in self.folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(self.folder)) for file in files]
            if "/tree/" in path:  # how huggingface_hub 2 lists a revision's files; 1 takes them from the revision
                listing = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file, hashlib.sha1)}
                    for name, file in zip(names, files, strict=True)
                ]
            else:
                listing = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._answer(json.dumps(listing).encode(), Content_Type="application/json")
        files = f"{'' if self.kind == 'models' else f'/{self.kind}'}/{MODEL}/resolve/"
        revision, _, name = path.removeprefix(files).partition("/")
        file = self.folder / name
        if not path.startswith(files) or revision not in (COMMIT, "main") or not file.is_file():
            return self._missing("EntryNotFound" if path.startswith(files) else "RepoNotFound")
        body = file.read_bytes()
        return self._answer(body, ETag=f'"{_digest(file, hashlib.sha256)}"', X_Repo_Commit=COMMIT)

    def _missing(self, what):
        self.send_response(404)
        for name, value in {"X-Error-Code": what, "X-Repo-Commit": COMMIT, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET


@contextlib.contextmanager
def serving(folder, kind):
    """A server of a folder; its address and what it was asked for."""
    handler = type("Handler", (Hub,), {"folder": folder, "asked": [], "kind": kind})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path):
    """A server of the embedded model and of a file that no pipeline wants; its address and what it was asked for."""
    folder = tmp_path / "served"
    for path in find("portraits").rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(find("portraits"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for unwanted in UNWANTED:
        (folder / unwanted).parent.mkdir(exist_ok=True)
        (folder / unwanted).write_bytes(b"what no pipeline reads")
    with serving(folder, "models") as served:
        yield served


PIPELINE = (
    "import sys; from fairjax.pipeline import Pipeline\n"
    "try: pipeline = Pipeline.from_pretrained(sys.argv[1])\n"
    "except FileNotFoundError as error: sys.exit(f'refused: {error}')\n"
    "from fairjax.hub import on_hub\n"
    "print(pipeline.latent_shape, pipeline.folder, on_hub(sys.argv[1]))"
)
SEMANTICS = (
    "import sys; from fairjax.config import JudgesSection; from fairjax.faces import reading\n"
    "from fairjax.hub import NETWORK, on_hub\n"
    "before = on_hub(sys.argv[1], NETWORK)\n"
    "section = JudgesSection(semantics=(sys.argv[1],))\n"
    "(found,) = reading.judges(section).semantics\n"
    "print(before, 'dinov2' if found.image_size == 224 else 'clip')\n"
    "print(on_hub(sys.argv[1], NETWORK), reading.revisions(section))\n"
)
SIZES = (
    "import sys; from fairjax.hub import download_size, find\n"
    "size = lambda: print(download_size(sys.argv[1]), end=' ')\n"
    "size(); find(sys.argv[1], weights=False); size(); find(sys.argv[1]); size()\n"
    "print(download_size('nobody/nothing'))"
)
DRY_RUN = "import sys; sys.path.insert(0, '.'); import train; sys.exit(train.main(sys.argv[2:]))"
PROMPTS = (
    "import sys; from fairjax.prompts import subjects; from fairjax.config import PromptSection\n"
    "for name in (sys.argv[1], sys.argv[1], 'nobody/nothing'):\n"
    "    source = {'name': name, 'column': 'job', 'weight_column': 'share', 'templates': ('a {job}',)}\n"
    "    try: found = subjects(PromptSection(sources=(source,)))\n"
    "    except ValueError as error: sys.exit(f'refused: {error}')\n"
    "    print([prompt.text for prompt in found.measuring(2)], found.sources[0].trained.weights)"
)


def read(model, hub, cache, program=PIPELINE, *arguments):
    """What a program says in a process of its own, because the clients read the address when imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    kept["COLUMNS"] = "160"
    environment = kept | {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", program, model, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_hub_id_is_downloaded_once_without_pickles_and_loads(hub, tmp_path):
    address, asked = hub
    first = read(MODEL, address, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert COMMIT in first.stdout and first.stdout.endswith(" False\n")  # a dry run has nothing to download now
    assert first.stdout.startswith(str(tuple([16, 16, 4])))
    assert any("unet/diffusion_pytorch_model.safetensors" in line for line in asked)
    assert not [line for line in asked if any(name in line for name in UNWANTED)]
    asked.clear()
    again = read(MODEL, address, tmp_path / "cache")
    assert again.stdout == first.stdout
    assert not any(line.startswith("GET") and "/resolve/" in line for line in asked)


def test_weights_in_half_precision_are_downloaded_where_there_are_no_others(hub, tmp_path):
    address, asked = hub
    vae = tmp_path / "served" / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    read_again = read(MODEL, address, tmp_path / "cache")
    assert read_again.returncode == 0, read_again.stderr
    assert any("vae/diffusion_pytorch_model.fp16.safetensors" in line for line in asked)
    assert not any("unet/diffusion_pytorch_model.fp16" in line for line in asked)


def test_the_size_of_a_download_is_known_before_it(hub, tmp_path):
    """With the weights in half precision where there are no others; less what is on the machine by then."""
    address, _ = hub
    vae = tmp_path / "served" / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    told = read(MODEL, address, tmp_path / "cache", SIZES)
    fetched = [path for path in (tmp_path / "cache").rglob("snapshots/**/*") if path.is_file()]
    total = sum(path.stat().st_size for path in fetched)
    weights = sum(path.stat().st_size for path in fetched if path.suffix == ".safetensors")
    assert told.stdout == f"{total} {weights} 0 None\n", told.stderr


def test_a_revision_is_pinned_and_known(hub, tmp_path):
    address, asked = hub
    program = PIPELINE + "; print(pipeline.revision)"
    pinned = read(f"{MODEL}@{COMMIT}", address, tmp_path / "cache", program)
    assert pinned.returncode == 0 and pinned.stdout.endswith(f" False\n{COMMIT}\n"), pinned.stderr
    assert any(COMMIT in line for line in asked) and not any("/main" in line for line in asked)
    missing = read(f"{MODEL}@nowhere", address, tmp_path / "cache", program)
    assert missing.returncode == 1 and f"refused: model = '{MODEL}@nowhere': no such folder" in missing.stderr


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_image_semantics_are_read_by_their_hub_id(kind, models, tmp_path):
    """And nothing but the network: not the same weights in other formats beside it."""
    folder = tmp_path / "served"
    shutil.copytree(models / kind, folder)
    unwanted = ("open_clip_model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "other/model.safetensors")
    for name in unwanted:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"what nobody reads")
    with serving(folder, "models") as (address, asked):
        first = read(MODEL, address, tmp_path / "cache", SEMANTICS)
        assert first.returncode == 0, first.stderr
        assert first.stdout == f"True {kind}\nFalse {{'portraits': '{COMMIT}'}}\n" and any(
            "model.safetensors" in line for line in asked
        )
        assert not [line for line in asked if any(name in line for name in unwanted)]


def test_a_dry_run_knows_parameters_and_memory_before_the_weights_are_downloaded(small_world, tmp_path):
    """Trained are, of two LoRA, rank times the inputs and outputs of every projection that they change.

    And where the hub does not say what a model is, it is named.
    """
    served = tmp_path / "served"
    shutil.copytree(small_world, served)
    (served / "model.safetensors").write_bytes(b"what no pipeline reads")
    fields = {"--model": MODEL, "--training.images_per_prompt": "8", "--output": str(tmp_path / "run")}
    fields |= {"--adapter.kinds": "[text_encoder, unet]", "--adapter.rank": "3"}
    arguments = [*small_world_arguments(small_world), *(part for pair in fields.items() for part in pair), "--dry-run"]
    with serving(served, "models") as (address, asked):
        known = read(MODEL, address, tmp_path / "cache", DRY_RUN, *arguments)
        again = read(MODEL, address, tmp_path / "cache", DRY_RUN, *arguments, "--model", "nobody/nothing")
    assert known.returncode == 0, known.stderr
    weights = Pipeline.from_pretrained(small_world).params
    for name, tree in weights.items():
        assert f"{name} {num_params(tree) / 1e6:.1f} M" in known.stdout
    projections = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2|to_q|to_k|to_v|to_out.*).*kernel"
    shapes = [
        leaf.shape
        for name in ("text_encoder", "unet")
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights[name])
        if re.search(projections, jax.tree_util.keystr(path))
    ]
    assert f"text_encoder, unet: {3 * sum(map(sum, shapes)):,}" in known.stdout
    assert not (tmp_path / "run").exists()
    assert re.search("attributes kept +│ skin_tone, age ", known.stdout)
    assert re.search(f"to download +│ {MODEL} .* MB", known.stdout) and "MiB while a step runs" in known.stdout
    assert not [line for line in asked if "GET" in line and ".safetensors" in line]
    assert again.returncode == 0, again.stderr
    assert "known when the hub can be asked for nobody/nothing" in again.stdout


def test_another_kind_of_pipeline_is_refused_before_its_weights_are_downloaded(hub, tmp_path):
    address, asked = hub
    index = tmp_path / "served" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    refused = read(MODEL, address, tmp_path / "cache")
    assert "_class_name = 'StableDiffusionXLPipeline' is Stable Diffusion XL: " in refused.stderr
    assert not [line for line in asked if "safetensors" in line]


def test_a_model_that_the_hub_has_not_is_one_line(hub, tmp_path):
    address, _ = hub
    refused = read("nobody/nothing", address, tmp_path / "cache")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert refused.stderr.strip().splitlines()[-1].startswith("refused: model = 'nobody/nothing': no such folder")


def test_prompts_of_a_hub_dataset_are_downloaded_once_with_their_splits_and_weights(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "train.csv").write_text("job,share\nchef,1\nusher,2.5\n")
    (folder / "test.csv").write_text("job,share\nnurse,1\n")
    with serving(folder, "datasets") as (address, asked):
        said = read(MODEL, address, tmp_path / "cache", PROMPTS)
    assert said.stdout == "['a chef', 'an usher', 'a nurse'] (1.0, 2.5)\n" * 2, said.stderr
    assert sum(line.startswith("GET") and line.endswith("/train.csv") for line in asked) == 1
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert said.stderr.startswith("refused: prompts.sources: 'nobody/nothing' cannot be read: Dataset 'nobody/nothing'")
