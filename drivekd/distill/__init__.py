"""Distillation: the whole way from records to a checkpoint, `drivekd train`. Imports torch.

B packs, S tokens, R rows and C columns of a map, N gradient rows (cross-entropy's, and one for each capability with a teacher)

1. Records. drivekd/data/readers/sample_file.py::read_samples: a file -> samples; drivekd/data/packs.py::frame_packs: questions
   about one frame become one pack; drivekd/data/batch.py::Collator: packs -> ids [B, S], masks, pictures.
2. Teachers' signals. drivekd/distill/teachers/teachers.py::Teachers.targets: a batch -> for each capability one map [B, R, C] a
   student layer, each the mean of the teacher layers that drivekd/distill/signals.py::group_layers gives it.
3. Losses. drivekd/distill/training/objectives.py::Objectives.losses: the student on the same batch -> {row: scalar}, of
   drivekd/distill/losses.py::cross_entropy_per_sample and drivekd/distill/signals.py::signal_loss.
4. Raw gradients. drivekd/distill/training/gradients.py::GradientRows.add: one backward a row -> N rows as large as what trains.
5. Gram matrix. drivekd/distill/training/gradients.py::GradientRows.gram: their dot products, [N, N] float64.
6. Coefficients. drivekd/distill/reconcile.py::Reconciler weighs the rows (drivekd/distill/weighting.py::Weighting.weights), and
   drivekd/distill/projection.py::project is AGP: Gram matrix [N, N] -> coefficients [N].
7. One update. drivekd/distill/training/gradients.py::GradientRows.write_update: coefficients [N] @ rows -> every `.grad`, once;
   then one AdamW step on fp32 masters. Steps 2 to 7 are put together by drivekd/distill/training/trainer.py::Trainer.step;
   drivekd/distill/training/train.py::train reads the records and has the loop.
8. Checkpoint. drivekd/distill/training/run_files.py::RunFiles.checkpoint: weights, moments, position in the data; and at the
   end drivekd/distill/training/run_files.py::RunFiles.final, which an export starts from.

Equations and reasons: docs/method.md.
"""
