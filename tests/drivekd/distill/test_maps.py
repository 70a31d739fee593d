"""What a signal reads of a forward pass: the same values from chosen rows, whole maps and views of either.

B = 3 packs, N = 8 samples, S positions; real captures of a tiny student.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_run import Pair, TinyRun, frame_samples, load_pair
from torch import Tensor

from drivekd.data.batch import PREFIX, Batch
from drivekd.data.packs import frame_packs
from drivekd.distill.maps import Maps, WantedLayers, similarity_map
from drivekd.distill.signals import Form, LossKind, Places, Signal, full_map_places, places_of, text_to_vision_places
from drivekd.models import language_model
from drivekd.models.decoder import run_decoder
from drivekd.models.probe import MapRequest, capture

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

FORMS: tuple[Form, ...] = ("text_to_vision", "full_map")
LAYER = 1
ATOL = 1e-6  # probabilities in fp32; a view read from rows and one read from a whole map are summed in other orders


@pytest.fixture(scope="module")
def pair(family_run: TinyRun) -> Pair:
    return load_pair(family_run)


@pytest.fixture(scope="module")
def batch(family_run: TinyRun, pair: Pair) -> Batch:
    return pair.collate(frame_packs(frame_samples(family_run, [4, 3, 1]), pair.collate.num_tokens, 4096, seed=0))


def signal(form: Form, loss: LossKind = "mse", layers: Sequence[int] = (LAYER,)) -> Signal:
    return Signal("planning", form, loss, tuple(layers), tuple((layer,) for layer in layers))


@torch.no_grad()
def run(pair: Pair, batch: Batch, *signals: Signal) -> Maps:
    wanted = WantedLayers.of((one, one.student_layers) for one in signals)
    maps = Maps(batch, wanted)
    with capture(language_model(pair.student).layers, maps.requests, hidden=wanted.hidden) as maps.captured:
        features = pair.features(batch)
        run_decoder(pair.student, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
    return maps


def real(places: Places) -> Tensor:
    return places.row_mask[:, :, None] & places.column_mask[:, None]


# --- what is captured -----------------------------------------------------------------------------------------------


def test_a_layer_is_captured_once_and_no_larger_than_needed(batch: Batch) -> None:
    signals = (signal("text_to_vision", layers=(0, 2)), signal("full_map", layers=(1, 2)), signal("full_map", "hidden", (0,)))
    wanted = WantedLayers.of((one, one.student_layers) for one in signals)
    assert (wanted.whole, wanted.rows, wanted.hidden) == ({1, 2}, {0}, {0})
    places = text_to_vision_places(batch)
    requests = wanted.requests(places)
    assert list(requests) == [0, 1, 2]
    assert requests[0].rows is places.rows and requests[0].columns is places.columns
    assert requests[1] == requests[2] == MapRequest()


def test_nothing_is_wanted_for_words(batch: Batch) -> None:
    wanted = WantedLayers.of([(Signal("planning", "full_map", "kl", (), ()), ())])
    assert not wanted.requests(text_to_vision_places(batch))
    assert not wanted.hidden


# --- the same values, however they were captured --------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [range(8), [0], [1, 2], [0, 4, 7], [3, 5, 6], [7]])
def test_rows_and_whole_maps_say_the_same(pair: Pair, batch: Batch, chosen: Sequence[int]) -> None:
    """Both against plain indexing of the whole map."""
    one = signal("text_to_vision")
    from_rows, from_whole = run(pair, batch, one), run(pair, batch, one, signal("full_map"))
    assert from_rows.captured.attention[LAYER].shape[2] < batch.input_ids.shape[1]
    whole = from_whole.captured.attention[LAYER]
    view = batch.select(list(chosen))
    places = text_to_vision_places(view.batch)
    rows, columns = (view.positions.gather(1, positions) for positions in (places.rows, places.columns))
    expected = torch.stack([whole[view.rows[b]][rows[b]][:, columns[b]] for b in range(len(view.rows))])
    mask = real(places)
    assert bool(mask.any())
    for maps in (from_rows, from_whole):
        found = maps.at(one, LAYER, view, places)
        assert found.shape == mask.shape
        torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=ATOL)
    assert torch.equal(from_whole.at(one, LAYER, view, places)[mask], expected[mask])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", ["mse", "hidden"])
@pytest.mark.parametrize("chosen", [range(8), [0, 2], [1, 4, 7]])
def test_a_view_of_the_maps_is_the_maps_of_the_view(
    pair: Pair, batch: Batch, form: Form, loss: LossKind, chosen: Sequence[int]
) -> None:
    """A question's rows do not depend on which other questions share its pack."""
    one = signal(form, loss)
    view = batch.select(list(chosen))
    places = places_of(form, view.batch)
    found = run(pair, batch, one).at(one, LAYER, view, places)
    expected = run(pair, view.batch, one).at(one, LAYER, view.batch.whole(), places)
    mask = real(places)
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=5e-6 if loss == "hidden" else ATOL)
    assert float(expected[mask].std()) > 1e-3


# --- hidden states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_similarities_are_cosines_of_visible_pairs(batch: Batch, form: Form) -> None:
    hidden = torch.randn(*batch.input_ids.shape, 5, generator=torch.Generator().manual_seed(0))
    places = places_of(form, batch)
    found = similarity_map(hidden, batch, places)
    for b, r, c in real(places).nonzero()[::7].tolist():
        i, j = int(places.rows[b, r]), int(places.columns[b, c])
        visible = j <= i and int(batch.segment[b, j]) in (PREFIX, int(batch.segment[b, i]))
        expected = float(torch.cosine_similarity(hidden[b, i], hidden[b, j], dim=0)) if visible else 0.0
        assert float(found[b, r, c]) == pytest.approx(expected, abs=1e-6)


def test_similarities_do_not_depend_on_width_or_scale(batch: Batch) -> None:
    hidden = torch.randn(*batch.input_ids.shape, 6, generator=torch.Generator().manual_seed(0))
    places = full_map_places(batch)
    before = similarity_map(hidden, batch, places)
    wider = torch.cat([3 * hidden, torch.zeros_like(hidden)], -1)
    torch.testing.assert_close(similarity_map(wider, batch, places), before, rtol=0, atol=ATOL)
    half = similarity_map(hidden.bfloat16(), batch, places)
    assert half.dtype == torch.float32  # a layer's output under autocast
