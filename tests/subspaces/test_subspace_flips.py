"""A11 and finding 2: flips of a toy comparator whose flipping point is known in closed form."""

import numpy as np
import pytest

from inscape.errors import InputError
from inscape.subspaces import PLSSubspace, direction, flips, normalise_answer, random_directions, unit

ALPHAS = np.arange(-30, 30, 1.5)  # P4's: 40 strengths, 0 among them


class Comparator:
    """Says Yes iff r.(h_x - h_y) < 0, on activations of the planted world; an edit adds alpha * v to one entity."""

    def __init__(self, world, reader, n=300):
        rng = np.random.default_rng(world.seed)
        x, y = rng.integers(0, 500, (2, n))
        keep = x != y
        self.h_x, self.h_y, self.r = world.X_test[x[keep]], world.X_test[y[keep]], reader

    def gap(self):
        return (self.h_x - self.h_y) @ self.r

    def answer(self, shift_x=0.0, shift_y=0.0):
        return np.where((self.h_x + shift_x - self.h_y - shift_y) @ self.r < 0, "Yes", "No").tolist()

    def sweep(self, v, entity="y", alphas=ALPHAS):
        return [self.answer(**{f"shift_{entity}": alpha * v}) for alpha in alphas]


@pytest.fixture(scope="module")
def toy(planted):
    world = planted(0)
    v = unit(direction(PLSSubspace(5).fit(world.X_fit, world.y_fit), "weights"))
    return world, Comparator(world, world.D[0]), v


class TestA11:
    @pytest.mark.parametrize("entity", ["x", "y"])
    def test_an_answer_flips_at_alpha_iff_it_is_past_its_flipping_point(self, toy, entity):
        _, comparator, v = toy
        base = comparator.answer()
        edited = comparator.sweep(v, entity)
        point = comparator.gap() / (comparator.r @ v) * (1 if entity == "y" else -1)
        for alpha, row in zip(ALPHAS, edited, strict=True):
            expected = (np.abs(alpha) > np.abs(point)) & (alpha * point > 0)
            observed = np.array(row) != np.array(base)
            assert (observed == expected).all()
        table = flips(base, edited, ALPHAS).per_alpha
        expected_share = [((np.abs(a) > np.abs(point)) & (a * point > 0)).mean() for a in ALPHAS]
        np.testing.assert_allclose(table["flip_valid"], expected_share)

    def test_alpha_zero_never_flips(self, toy):
        _, comparator, v = toy
        table = flips(comparator.answer(), comparator.sweep(v), ALPHAS).per_alpha
        row = table.row(int(np.flatnonzero(ALPHAS == 0)[0]), named=True)
        assert (row["flip_valid"], row["changed"], row["sign"]) == (0.0, 0.0, 0)

    def test_the_first_entity_flips_with_the_opposite_sign(self, toy):
        _, comparator, v = toy
        alphas = np.arange(-30, 31, 1.5)
        second = flips(comparator.answer(), comparator.sweep(v, "y", alphas), alphas).per_alpha
        first = flips(comparator.answer(), comparator.sweep(v, "x", alphas), alphas).per_alpha
        np.testing.assert_allclose(first["flip_valid"], second["flip_valid"].reverse())
        assert second["flip_valid"][0] > 0.3
        # A greater second entity can only turn No into Yes, a lesser one only Yes into No.
        assert second["flip_from_no"][-1] > 0.9
        assert second["flip_from_yes"][-1] == 0.0
        assert first["flip_from_yes"][-1] > 0.9
        assert first["flip_from_no"][-1] == 0.0

    def test_an_orthogonal_axis_flips_nothing(self, toy):
        world, comparator, _ = toy
        result = flips(comparator.answer(), comparator.sweep(world.D[5]), ALPHAS)
        assert result.per_alpha["flip_valid"].max() == 0.0
        assert result.changed_any == 0.0


def test_finding_2_the_any_alpha_count_saturates(planted):
    own, best, random = [], [], []
    for seed in range(5):
        world = planted(seed)
        comparator = Comparator(world, world.D[0])
        v = unit(direction(PLSSubspace(5).fit(world.X_fit, world.y_fit), "weights"))
        base = comparator.answer()
        result = flips(base, comparator.sweep(v), ALPHAS)
        own.append(result.changed_any)
        best.append(result.per_alpha["flip_valid"].max())
        controls = random_directions(256, n_draws=4, random_state=seed)
        random.extend(flips(base, comparator.sweep(control), ALPHAS).changed_any for control in controls)
    assert np.mean(own) >= 0.99  # notes: 99.9 %
    assert np.mean(best) == pytest.approx(0.52, abs=0.06)  # one sign can only flip one class
    assert 0.05 < np.mean(random) < 0.30  # notes: 15 %
    assert max(random) > 0.2  # up to 39 % by chance: the control is part of the method


class TestCounts:
    BASE = (" Yes", "no", "Maybe", "No.")
    EDITED = (("No", "no", "Yes", "yes"), (" Yes", "No", "Maybe", "No."), ("yes", "banana", "no", "YES"))

    def test_by_hand(self):
        result = flips(self.BASE, self.EDITED, [-1.0, 0.0, 2.0])
        table = result.per_alpha
        assert (result.n, result.n_invalid_base) == (4, 1)
        assert table["n_valid"].to_list() == [3, 3, 3]
        assert table["flip_valid"].to_list() == pytest.approx([2 / 3, 0, 1 / 3])
        assert table["flip_from_yes"].to_list() == [1.0, 0.0, 0.0]
        assert table["flip_from_no"].to_list() == [0.5, 0.0, 0.5]
        assert table["invalid"].to_list() == [0.0, 0.25, 0.25]
        assert table["changed"].to_list() == [0.75, 0.25, 1.0]  # P4 compares texts: "no" and "No" differ
        assert table["changed_any_so_far"].to_list() == [0.75, 1.0, 1.0]
        assert result.changed_any == 1.0
        np.testing.assert_allclose(result.per_sign.to_numpy(), [(-1, -1, 2 / 3, 2 / 3), (1, 2, 1 / 3, 1 / 3)])

    def test_the_gentlest_of_equal_alphas_is_the_best(self):
        result = flips(["yes"] * 2, [["no", "yes"], ["no", "yes"], ["yes", "no"]], [-9.0, -3.0, -1.0])
        assert result.per_sign.rows() == [(-1, -1.0, 0.5, 1.0)]

    def test_other_answer_sets(self):
        result = flips(["True", "B"], [["False", "A"]], [1.0], {"true": "false", "A": "B"})
        assert result.per_alpha["flip_valid"].item() == 1.0

    def test_no_valid_base_answer_has_no_flip_rate(self):
        table = flips(["hm"], [["yes"]], [1.0]).per_alpha
        assert np.isnan(table["flip_valid"].item())
        assert table["changed"].item() == 1.0

    @pytest.mark.parametrize(
        ("text", "expected"), [(" Yes.", "yes"), ("NO\n", "no"), ("no, ", "no"), ("", ""), ("İ", "i̇")]
    )
    def test_answers_are_compared_without_space_stop_or_case(self, text, expected):
        assert normalise_answer(text) == expected

    def test_refusals(self):
        with pytest.raises(InputError, match="expected one row per alpha"):
            flips(["yes"], [["no"]], [1.0, 2.0])
        with pytest.raises(InputError, match="expected one row per alpha"):
            flips([], [[]], [1.0])
        with pytest.raises(InputError, match="each once"):
            flips(["yes"], [["no"], ["no"]], [1.0, 1.0])
        for opposites in ({}, {"yes": "yes"}, {"yes": "no", "maybe": "no"}):
            with pytest.raises(InputError, match="opposite"):
                flips(["yes"], [["no"]], [1.0], opposites)
