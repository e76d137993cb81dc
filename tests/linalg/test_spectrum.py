import pytest
import torch

from lrcompress.linalg import MOST_VALUES, merge_spectra, thin_spectrum


def falling(count):
    return torch.linspace(2.0, 1.0, count, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 31, 32])
def test_a_short_spectrum_is_kept_whole(count):
    sigma = falling(count)
    assert thin_spectrum(sigma) == tuple((i + 1, pytest.approx(float(sigma[i]), rel=1e-5)) for i in range(count))


@pytest.mark.parametrize("count", [33, 64, 1000, 4096])
def test_a_long_spectrum_is_thinned_from_its_first_value_to_its_last(count):
    sigma = falling(count)
    numbers = [i for i, _ in thin_spectrum(sigma)]
    assert (numbers[0], numbers[-1]) == (1, count)
    assert 16 <= len(numbers) <= MOST_VALUES
    assert numbers == sorted(set(numbers))
    assert [value for _, value in thin_spectrum(sigma)] == pytest.approx(
        [float(sigma[i - 1]) for i in numbers], rel=1e-5
    )


def test_the_numbers_are_evenly_spaced_on_a_logarithmic_scale():
    numbers = torch.tensor([i for i, _ in thin_spectrum(falling(10**6))], dtype=torch.float64)
    ratios = (numbers[1:] / numbers[:-1])[numbers[1:] > 100]  # below, whole numbers lie far apart
    assert len(ratios) > 15
    assert ratios.tolist() == pytest.approx([10 ** (6 / 31)] * len(ratios), rel=0.02)


def test_values_have_six_digits_and_zero_stays_zero():
    assert thin_spectrum(torch.tensor([1234567.0, 1.23456789e-5, 0.0], dtype=torch.float64)) == (
        (1, 1234570.0), (2, 1.23457e-5), (3, 0.0),
    )  # fmt: skip


def test_spectra_of_several_matrices_are_one_in_descending_order():
    assert merge_spectra([torch.tensor([5.0, 1.0]), torch.tensor([3.0])]).tolist() == [5, 3, 1]
