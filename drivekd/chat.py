"""The one prompt path: how images, a question and an answer become token ids, in training and in the car alike.

A prompt is  prefix(images) + suffix(question); an answer follows it. The three parts are tokenised on their own and then
joined: the prefix is shared by every question about one frame, so its K/V can be computed once, and training sees the very
ids that the car will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer

from drivekd.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class ChatFormat:
    """The literal pieces of a chat template around images, question and answer.

    before_images: opens the (system and) user turn. image: what stands for one image, with `tokens_per_image` copies of
    `image_token`. after_question: closes the user turn and opens the assistant's. end_of_turn: closes the answer.
    """

    before_images: str
    image_start: str
    image_token: str
    image_end: str
    after_question: str
    end_of_turn: str
    tokens_per_image: int

    @property
    def image(self) -> str:
        return self.image_start + self.image_token * self.tokens_per_image + self.image_end

    def prefix(self, num_images: int) -> str:
        """Everything before the question: the open user turn with so many images. The text that every question shares."""
        return self.before_images + self.image * num_images

    def suffix(self, question: str) -> str:
        """The question, taken literally, up to where the answer begins."""
        return question + self.after_question

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def chat_format_from_template(
    template: str, *, image_token: str, image_start: str, image_end: str, tokens_per_image: int, source: str
) -> ChatFormat:
    """Render a Hugging Face chat template with sentinels and cut it into its pieces.

    image_start, image_end: the tokens around an image's own, whether the template writes them (Qwen) or not (InternVL).
    Raises CheckpointError when the template does not put the images before the text, in order, in one user turn.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    question, answer = "\x00QUESTION\x00", "\x00ANSWER\x00"
    user = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    try:
        compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        asked = compiled.render(messages=[user], add_generation_prompt=True)
        answered = compiled.render(messages=[user, assistant], add_generation_prompt=False)
    except (TemplateError, TypeError) as error:  # TypeError: a text-only template adds a list of contents to a string
        raise CheckpointError(f"{source}: the chat template cannot be rendered ({error})") from error
    pieces = asked.split(image_token)
    if len(pieces) != 3 or pieces[2].count(question) != 1 or answer not in answered:
        raise CheckpointError(f"{source}: the chat template must render each image as one {image_token} before the question")
    before_images, between_images, rest = pieces
    after_last_image, after_question = rest.split(question)
    if _writes_markers(before_images, between_images, image_start, image_end):
        before_images, between_images = (text.removesuffix(image_start) for text in (before_images, between_images))
        image_end = ""
    if after_last_image != between_images:
        raise CheckpointError(f"{source}: the chat template puts different text behind the first and the last image")
    end_of_turn = answered.split(answer)[1].strip("\n")
    return ChatFormat(
        before_images=before_images,
        image_start=image_start,
        image_token=image_token,
        image_end=image_end + between_images,
        after_question=after_question,
        end_of_turn=end_of_turn,
        tokens_per_image=tokens_per_image,
    )


def _writes_markers(before: str, between: str, start: str, end: str) -> bool:
    """Qwen's template writes the markers around an image itself; InternVL's leaves them to the processor."""
    return bool(start and end) and before.endswith(start) and between.startswith(end) and between.endswith(start)


class PromptEncoder:
    """Text to token ids and back for one tokenizer and one ChatFormat."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.image_token_id = self._single_id(chat.image_token)
        self.end_of_turn_id = self._single_id(chat.end_of_turn)
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._markers = sorted(special | {chat.image_token, chat.end_of_turn, chat.image_start, chat.image_end.strip()} - {""})

    def _single_id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}, which the chat template needs")
        return int(token_id)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prefix(self, num_images: int) -> list[int]:
        """Ids of everything up to and including the last image."""
        return self._encode(self.chat.prefix(num_images))

    def suffix(self, question: str) -> list[int]:
        """Ids of the question and the opening of the assistant's turn. Raises UsageError on chat markers in the question."""
        self._refuse_markers("question", question)
        return self._encode(self.chat.suffix(question))

    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end of turn: what training supervises and the car generates. Raises UsageError on markers."""
        self._refuse_markers("answer", text)
        return [*self._encode(text), self.end_of_turn_id]

    def find_marker(self, text: str) -> str | None:
        """A special token within a text: it would open a turn of its own, or ask for an image that is not there."""
        return next((marker for marker in self._markers if marker in text), None)

    def _refuse_markers(self, what: str, text: str) -> None:
        if (marker := self.find_marker(text)) is not None:
            raise UsageError(f"the {what} contains the chat marker {marker!r}; take it out: {text[:120]!r}")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; special tokens are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
