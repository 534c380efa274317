"""Chat templates by name: how a question and its answer become one text.

They are plain strings rather than a tokenizer's jinja template, so that the text is the same on every machine, with
every tokenizer, and on every day (Llama 3's own template writes today's date).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.settings import PromptTemplate, TemplateName, TemplateParts, Trims

SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Template:
    """``before_question + question + after_question`` is the prompt; ``before_answer + answer + after_answer`` follows.

    Attributes:
        before_question: the text before the question
        after_question: the text after the question
        before_answer: the text before the answer
        after_answer: the text after the answer
        adds_bos: whether the tokenizer's own start token goes first; templates with special tokens hold it already
        special_tokens: texts that must be one token each
        bos: start token of a tokenizer that is trained for this template
        eos: end token of such a tokenizer
        trims: whether white space around question and answer is removed, or around which one of them
        labels_by_length: whether the text is encoded as a whole and labels begin after as many tokens as the prompt has
            by itself; otherwise after the prompt's own tokens
    """

    before_question: str
    after_question: str
    before_answer: str = ""
    after_answer: str = ""
    adds_bos: bool = True
    special_tokens: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = "</s>"
    trims: Trims = False
    labels_by_length: bool = False

    @classmethod
    def of(cls, given: PromptTemplate) -> Template:
        """The template of a name, or of parts."""
        if not isinstance(given, TemplateParts):
            return TEMPLATES[given]
        tokens = tuple(given.special_tokens)
        closing = max((t for t in tokens if given.after_answer.endswith(t)), key=len, default="</s>")
        opening = max((t for t in tokens if given.before_question.startswith(t)), key=len, default="<s>")
        return cls(
            given.before_question,
            given.after_question,
            given.before_answer,
            given.after_answer,
            given.adds_bos,
            tokens,
            bos="<s>" if given.adds_bos else opening,
            eos=closing,
            trims=given.trims,
            labels_by_length=given.labels_by_length,
        )

    @property
    def parts(self) -> TemplateParts:
        """As an entry of a model file."""
        return TemplateParts(
            before_question=self.before_question,
            after_question=self.after_question,
            before_answer=self.before_answer,
            after_answer=self.after_answer,
            adds_bos=self.adds_bos,
            special_tokens=list(self.special_tokens),
            trims=self.trims,
            labels_by_length=self.labels_by_length,
        )

    def prompt(self, question: str) -> str:
        """The text up to the place where the answer begins: what the model is given to generate from."""
        return (
            self.before_question
            + (question.strip() if self.trims in (True, "question") else question)
            + self.after_question
        )

    def completion(self, answer: str) -> str:
        """The text that follows the prompt: what is labelled."""
        return self.before_answer + (answer.strip() if self.trims in (True, "answer") else answer) + self.after_answer

    def text(self, question: str, answer: str) -> str:
        return self.prompt(question) + self.completion(answer)


TEMPLATES: dict[TemplateName, Template] = {
    # TOFU's and open-unlearning's form for models without a chat template. The space before the answer belongs to the
    # answer: nearly all vocabularies hold words with their leading space, and a prompt that ended in a space would
    # split the first word of the answer differently from running text.
    "plain": Template("Question: ", "\nAnswer:", before_answer=" "),
    # open-unlearning's code for such models, for numbers that are compared with its own. Where the tokenizer joins the
    # space and the answer's first word to one token, that token is in the prompt's place and has no label, and answers
    # are generated after a space of its own.
    "plain-open-unlearning": Template("Question: ", "\nAnswer: ", labels_by_length=True),
    # open-unlearning's form: the answer follows the tag directly, and there is no system prompt.
    "llama-2": Template("[INST] ", " [/INST]"),
    # The official template of Llama 3.1 and 3.2 without tools, with the date that open-unlearning fixes.
    "llama-3": Template(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"Cutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n{SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        after_answer="<|eot_id|>",
        adds_bos=False,
        special_tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        trims=True,
    ),
    # HuggingFaceH4/zephyr-7b-beta. Its jinja template writes a line end after the closing </s>; it is left out, so that
    # </s> is the last token and is labelled once.
    "zephyr": Template(
        f"<|system|>\n{SYSTEM}</s>\n<|user|>\n",
        "</s>\n<|assistant|>\n",
        after_answer="</s>",
        adds_bos=False,
        special_tokens=("</s>",),
    ),
    # OpenAI's ChatML, with which Qwen2.5, SmolLM2 and many others are tuned; each has a system prompt of its own. The
    # line end after the closing token is left out here too, and in those below.
    "chatml": Template(
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        after_answer="<|im_end|>",
        adds_bos=False,
        special_tokens=("<|im_start|>", "<|im_end|>"),
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    # google/gemma-2: it has no system prompt.
    "gemma": Template(
        "<bos><start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        after_answer="<end_of_turn>",
        adds_bos=False,
        special_tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<end_of_turn>",
        trims=True,
    ),
    # microsoft/Phi-3: without a system prompt, as its model card shows it.
    "phi-3": Template(
        "<|user|>\n",
        "<|end|>\n<|assistant|>\n",
        after_answer="<|end|>",
        adds_bos=False,
        special_tokens=("<|user|>", "<|end|>", "<|assistant|>"),
        eos="<|end|>",
    ),
    # mistralai/Mistral-7B-Instruct-v0.3, in which the tags are tokens; those of v0.1 and v0.2 are text, as llama-2's.
    "mistral-instruct": Template(
        "[INST] ",
        "[/INST]",
        before_answer=" ",
        after_answer="</s>",
        special_tokens=("[INST]", "[/INST]", "</s>"),
    ),
}
