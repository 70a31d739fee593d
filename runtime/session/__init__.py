"""From pictures to answers: the whole way of one frame, `Session.answer(images, ...)` -> {capability: Answer}.

B questions (one a capability), Q tokens of a question, P of the prefix, T of an image, D hidden size, V vocabulary

1. Ask. runtime/answers/ask.py::Ask.questions fills the bundle's templates: {capability: text}; the tokenizer makes B rows of Q
   ids. runtime/session/cameras.py::camera_tiles: images by camera, uint8 [H, W, 3] -> uint8 tiles of the bundle's size, in its
   order; runtime/session/cameras.py::Refresh.taken lets an earlier tile stand for a camera that is not due.
2. Vision. runtime/session/prefix.py::PrefixReader.read: each tile that changed, alone -> the vision graph -> embeddings [T, D].
3. Prefill. The same call: system prompt and images, [1, P, D] in chunks -> K/V of one row. What the last frame began with too
   is not read again.
4. Questions. runtime/session/triad.py::branch: that row copied to B rows, each reads its question -> logits [B, V] and K/V.
5. Decode. runtime/session/triad.py::decode, a step: runtime/session/sampling.py::Sampler.choose takes logits [B, V] and gives
   tokens [B], the decoder reads them in one call -> logits [B, V]. A row that ends leaves the batch.
   runtime/session/generation.py::TextStream.update hands new text on.
6. Answers. runtime/answers/answer.py::answer_fields, or runtime/answers/cut_answers.py::structured_answer: each row's text ->
   Answer.

Between any two engine calls runtime/answers/deadline.py::Deadline.interruption may end it: step 6 then has what there is. Steps
2 to 5 are put together by runtime/session/generation.py::Generation.run, steps 1 and 6 by
runtime/session/session.py::Session.answer_ask.
"""
