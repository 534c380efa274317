from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.benchmarks.privacy import UNENDED
from pipeline.benchmarks.questions import instance_of
from pipeline.benchmarks.tofu import synthetic
from pipeline.benchmarks.tofu.data import DATA
from pipeline.benchmarks.tofu.options import TofuOptions
from pipeline.benchmarks.tofu.synthetic import SyntheticSource
from pipeline.data import tokenizer as tokenizers
from pipeline.data.errors import DataError
from pipeline.data.qa_rows import Row
from pipeline.data.settings import BadRows, FolderSource, TemplateName
from pipeline.data.templates import TEMPLATES
from pipeline.data.tokenise import Encoder
from pipeline.data.tokenizer import Tokenizer

ROWS = [
    Row("Who wrote it?", "Ada wrote it.", "It was Ada who wrote it.", ("It was Bo who wrote it.", "It was Cy.")),
    Row("Where is it?", "In Oslo.", "Oslo is where it is.", ("Riga is where it is.",)),
]
ANSWER, EMPTY, LONG = Row("Who?", "Ada."), Row("Who?", " "), Row("Who?", "Ada. " * 40)


@pytest.fixture(scope="module", params=["plain", "llama-2", "llama-3", "zephyr", "chatml", "mistral-instruct"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    template = TEMPLATES[request.param]
    texts = [f"{row.question} {text}" for row in ROWS for text in (row.answer, row.paraphrased, *row.perturbed)]
    # ']"' is made a frequent pair, so that a prompt's last and an answer's first character can merge.
    tokenizer = tokenizers.train([*texts, *['[/INST]"It"'] * 9], 300, template, tmp_path_factory.mktemp("tokenizer"))
    return Encoder(tokenizer, template, max_length=300, bad_rows="error")


def test_prompts_are_prefixes_and_labels_are_the_answer_and_one_end_token(encoder: Encoder) -> None:
    tokenizer, template = encoder.tokenizer, encoder.template
    sequences, dropped = encoder.training(ROWS, "rows")
    assert (len(sequences), dropped) == (2, 0)
    for index, row in enumerate(ROWS):
        ids, prompt = sequences.row(index)
        start = "" if template.text("", "").startswith(template.bos) else template.bos
        if not template.adds_bos:
            start = ""
        assert tokenizer.decode(ids[:prompt], skip_special=False) == start + template.prompt(row.question)
        labels = tokenizer.decode(ids[prompt:], skip_special=False)
        assert labels == template.completion(row.answer).removesuffix(template.eos) + template.eos
        assert ids[-1] == tokenizer.eos_id
        # Zephyr's has no start token, and ChatML's begins each of its three parts.
        count = {TEMPLATES["zephyr"]: 0, TEMPLATES["chatml"]: 3}.get(template, 1)
        assert list(ids).count(tokenizer.bos_id) == count


def test_a_template_that_closes_answers_with_another_token_than_the_tokenizers(tmp_path: Path) -> None:
    """A base model's tokenizer under a chat template: labels end once, and answers at any end token that is stated."""
    template = TEMPLATES["llama-3"]
    trained = tokenizers.train(["Who? Ada."], 300, template, tmp_path)
    closing, end, other = trained.eos_id, trained.token_id("<|begin_of_text|>"), trained.token_id("A")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|begin_of_text|>"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.end_ids, tokenizer.closing(TEMPLATES["plain"])) == (end, {end}, None)
    ((_, target),) = Encoder(tokenizer, template, 300, "error").pairs([("Who?", "Ada.")])
    assert target[-1] == closing and target.count(closing) == 1 and end not in target
    ((_, target),) = Encoder(tokenizer, TEMPLATES["plain"], 300, "error").pairs([("Who?", "Ada.")])
    assert target[-1] == end and closing not in target
    tokenizer.ends_with(tmp_path, TEMPLATES["plain"])
    assert tokenizer.end_ids == {end}
    tokenizer.ends_with(tmp_path, template)
    assert tokenizer.end_ids == {end, closing}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": other}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, closing]}))
    tokenizer.ends_with(tmp_path, TEMPLATES["plain"])
    assert tokenizer.end_ids == {end, closing, other}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id: \['</s>'\]; allowed: the number"):
        tokenizer.ends_with(tmp_path, template)


def test_a_special_token_that_a_tokenizer_cuts_into_pieces_is_refused(tmp_path: Path) -> None:
    """It is in the vocabulary, but not among the tokens that are taken out of a text before that is cut."""
    tokenizers.train(["Ada."], 300, TEMPLATES["zephyr"], tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "</s>"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"template: its special token '</s>' is 4 tokens in a text"):
        Encoder(Tokenizer.load(tmp_path), TEMPLATES["zephyr"], 300, "error")


def test_evaluation_records(encoder: Encoder) -> None:
    records, dropped = encoder.evaluation(ROWS, "rows")
    sequences, _ = encoder.training(ROWS, "rows")
    assert dropped == 0
    for index, (row, record) in enumerate(zip(ROWS, records, strict=True)):
        ids, prompt = sequences.row(index)
        perturbed = {f"perturbed_{i}": text for i, text in enumerate(row.perturbed)}
        texts = {"answer": row.answer, "paraphrased": row.paraphrased, **perturbed}
        assert (record["index"], record["question"], record["answer"]) == (index, row.question, row.answer)
        assert list(record["targets"]) == list(texts)
        assert record["prompt_ids"] == ids[:prompt].tolist()
        assert record["targets"]["answer"] == ids[prompt:].tolist()
        for key, target in record["targets"].items():
            text = encoder.tokenizer.decode(target)
            assert text.strip() == texts[key]
            assert target[-1] == encoder.tokenizer.eos_id


def test_rows_without_paraphrase_have_no_such_target(encoder: Encoder) -> None:
    records, _ = encoder.evaluation([Row("Who?", "Ada.", None, ("Bo.",))], "rows")
    assert list(records[0]["targets"]) == ["answer", "perturbed_0"]


def test_a_merge_across_the_border_leaves_prompt_and_answer_whole(tmp_path: Path) -> None:
    template = TEMPLATES["llama-2"]
    tokenizer = tokenizers.train(['x]"It is"'] * 9, 300, template, tmp_path)
    encoder = Encoder(tokenizer, template, 300, "error")
    whole, alone = (tokenizer.encode(text, special=True) for text in (template.text("Q", '"It"'), template.prompt("Q")))
    assert whole[: len(alone)] != alone, "the texts no longer merge: this test needs another pair"
    ((prompt, target),) = encoder.pairs([("Q", '"It"')])
    assert prompt == alone
    assert tokenizer.decode(target, skip_special=False) == '"It"</s>'


def test_a_merge_across_the_border_adds_no_space_where_the_tokenizer_starts_texts_with_one(real_data: Path) -> None:
    tokenizer = Tokenizer.load(real_data / "models" / "stories260K")
    encoder = Encoder(tokenizer, TEMPLATES["llama-2"], 300, "error")
    assert tokenizer.decode(encoder.alone("Lily"), skip_special=False) == "Lily"
    assert tokenizer.encode("Lily", special=False) != encoder.alone("Lily")


@pytest.mark.parametrize("template", ["llama-3", "zephyr"])
def test_a_tokenizer_without_the_template_s_special_tokens_is_refused(template: TemplateName, tmp_path: Path) -> None:
    other = "plain" if template == "llama-3" else "llama-3"
    tokenizer = tokenizers.train(["text"], 300, TEMPLATES[other], tmp_path)
    token = TEMPLATES[template].special_tokens[0]
    with pytest.raises(
        DataError, match=r"template: its special token .* is not in the tokenizer's vocabulary"
    ) as error:
        Encoder(tokenizer, TEMPLATES[template], 300, "error")
    assert repr(token) in str(error.value)


def plain(folder: Path, bad_rows: BadRows, max_length: int = 64) -> Encoder:
    return Encoder(
        tokenizers.train(["Ada."], 280, TEMPLATES["plain"], folder), TEMPLATES["plain"], max_length, bad_rows
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (EMPTY, r"file\.jsonl, row 1, answer: no answer token"),
        (LONG, r"file\.jsonl, row 1, answer: \d+ tokens, more than max_length 64"),
    ],
)
def test_bad_rows_are_errors_or_counted(tmp_path: Path, bad: Row, message: str) -> None:
    strict, lenient = plain(tmp_path, "error"), plain(tmp_path, "drop")
    with pytest.raises(DataError, match=message):
        strict.training([ANSWER, bad], "file.jsonl")
    with pytest.raises(DataError, match=message):
        strict.evaluation([ANSWER, bad], "file.jsonl")
    sequences, dropped = lenient.training([ANSWER, bad, ANSWER], "file.jsonl")
    assert (len(sequences), dropped) == (2, 1)
    records, dropped = lenient.evaluation([ANSWER, bad, ANSWER], "file.jsonl")
    assert ([record["index"] for record in records], dropped) == ([0, 2], 1)


def test_a_bad_alternative_makes_the_evaluation_row_bad_and_is_named(tmp_path: Path) -> None:
    row = Row("Who?", "Ada.", "It was Ada.", ("It was Bo.", ""))
    with pytest.raises(DataError, match=r"file, row 0, perturbed_1: no answer token"):
        plain(tmp_path, "error").evaluation([row], "file")
    assert plain(tmp_path, "drop").evaluation([row], "file") == ([], 1)


def test_max_length_counts_prompt_and_end_token(tmp_path: Path) -> None:
    sequences, _ = plain(tmp_path, "error").training([ANSWER], "file")
    length = int(sequences.lengths[0])
    assert len(plain(tmp_path, "error", length).training([ANSWER], "file")[0]) == 1
    with pytest.raises(DataError, match=f"{length} tokens, more than max_length {length - 1}"):
        plain(tmp_path, "error", length - 1).training([ANSWER], "file")


def test_alternatives_are_the_first_that_fit_of_each_kept_row(tmp_path: Path) -> None:
    encoder = plain(tmp_path, "drop")
    long = "No. " * 30

    def alternatives(rows: list[Row], answers: list[list[str]]) -> list[str]:
        sequences = encoder.alternatives(rows, answers, 2, "file")
        pairs = (sequences.row(i) for i in range(len(sequences)))
        return [encoder.tokenizer.decode(ids[prompt:].tolist()).strip() for ids, prompt in pairs]

    assert alternatives([ANSWER, LONG, ANSWER], [["a", "b", "c"], ["d", "e", "f"], [long, "g", "h"]]) == [
        *("a", "b"),
        *("g", "h"),
    ]
    assert alternatives([ANSWER], [[long, long, "only"]]) == ["only", "only"]
    with pytest.raises(DataError, match=r"file, row 1: \d+ tokens, more than max_length 64; none of its alternative"):
        alternatives([LONG, ANSWER], [["a"], [long]])


@pytest.mark.parametrize("template", ["plain", "llama-2"])
def test_real_tofu_with_a_real_tokenizer_has_the_prefix_property(real_data: Path, template: TemplateName) -> None:
    rows = DATA.load(FolderSource(path=real_data / "tofu"), "forget10", (), training=True).splits.rows["forget10"]
    encoder = Encoder(Tokenizer.load(real_data / "models" / "stories260K"), TEMPLATES[template], 2048, "error")
    texts = [(row.question, row.answer) for row in rows]
    for (question, answer), (prompt, target) in zip(texts, encoder.pairs(texts), strict=True):
        text = encoder.template.text(question, answer)
        assert encoder.tokenizer.decode(prompt + target, skip_special=False) == f"<s> {text}</s>"


def test_mini_rows_stay_short(tmp_path: Path) -> None:
    rows = synthetic.generate(SyntheticSource(), "forget10", "retain90").rows
    texts = [(row.question, row.answer) for name in ("full", "background") for row in rows[name]]
    tokenizer = tokenizers.train((TEMPLATES["plain"].text(*text) for text in texts), 2048, TEMPLATES["plain"], tmp_path)
    sequences, _ = Encoder(tokenizer, TEMPLATES["plain"], 64, "error").training(rows["full"], "full")
    assert sequences.lengths.mean() < 30


def test_what_is_generated_from_is_the_prompt_as_it_is_written(tmp_path: Path) -> None:
    """Also where the tokenizer merges its last space with the answer, so that other ids stand before the labels."""
    template = TEMPLATES["plain-open-unlearning"]
    text = template.prompt("Who?") + "Lily."
    tokenizer = tokenizers.train([text] * 9, 300, template, tmp_path)
    ((record,), _) = Encoder(tokenizer, template, 64, "error").evaluation([Row("Who?", "Lily.", None, ())], "rows")
    (written,) = tokenizer.encode_batch([template.prompt("Who?")], template.adds_bos)
    assert record["prompt_ids"] == written != record["before"]["answer"]


LILY = [1, 410, 473, 425, 411, 356, 417, 289, 467, 410, 448, 415, 414, 450, 13, 447, 416, 419, 424, 285, 467]


def test_open_unlearning_s_plain_form_labels_no_first_token_and_generates_after_a_space(real_data: Path) -> None:
    """Only this has recorded ids, of transformers' tokenizer: 317 is " Lily", 410 a space of its own."""
    tokenizer = Tokenizer.load(real_data / "models" / "stories260K")
    encoder = Encoder(tokenizer, TEMPLATES["plain-open-unlearning"], 300, "error")
    assert encoder.pairs([("Who?", "Lily.")]) == [([*LILY, 317], [426, 2])]
    ((record,), _) = encoder.evaluation([Row("Who?", "Lily.", None, ("Ben.",))], "rows")
    assert record["prompt_ids"] == [*LILY, 410]
    assert record["targets"] == {"answer": [426, 2], "perturbed_0": [302, 426, 2]}
    assert record["before"] == {"answer": [*LILY, 317], "perturbed_0": [*LILY, 368]}
    options = TofuOptions(membership=["gradnorm"])
    settings = {"needed": set(), "options": options, "attacked": True, "tokenwise": True, "new_tokens": 3, "cuts": {}}
    asked = instance_of("forget", record, "row", tokenizer=tokenizer, **settings)  # type: ignore[arg-type] # of any type
    assert asked.targets["answer"] == ([*LILY, 317], [426, 2])
    assert asked.targets["perturbed_0"] == ([*LILY, 368], [302, 426, 2])
    assert asked.targets[UNENDED] == ([*LILY, 317], [426])
    assert asked.generate is not None and asked.generate.prompt == [*LILY, 410]


def test_open_unlearning_s_plain_form_is_what_its_code_makes_of_real_rows(real_data: Path) -> None:
    from transformers import AutoTokenizer

    folder = real_data / "models" / "stories260K"
    theirs = AutoTokenizer.from_pretrained(folder)
    rows = DATA.load(FolderSource(path=real_data / "tofu"), "forget01", (), training=True).splits.rows["forget01"]
    encoder = Encoder(Tokenizer.load(folder), TEMPLATES["plain-open-unlearning"], 2048, "error")
    sequences, _ = encoder.training(rows, "rows")
    for index, row in enumerate(rows):
        prompt = f"Question: {row.question}\nAnswer: "
        ids, length = sequences.row(index)
        assert ids.tolist() == [*theirs(prompt + row.answer)["input_ids"], theirs.eos_token_id]
        assert length == len(theirs(prompt)["input_ids"])
